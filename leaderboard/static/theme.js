// Before the first paint: light or dark as chosen here before, else as the system says; and that scripts run.
"use strict";

(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const names = ["auto", "light", "dark"];
  let kept = "auto";
  try {
    kept = localStorage.getItem("theme") || "auto";
  } catch {
    // a browser that keeps nothing for files: the choice lasts as long as the page
  }

  function show(name) {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    const button = document.querySelector("[data-theme-button]");
    if (button) button.textContent = `Theme: ${name}`;
  }

  show(names.includes(kept) ? kept : "auto");
  document.addEventListener("DOMContentLoaded", () => {
    let at = Math.max(0, names.indexOf(kept));
    show(names[at]);
    const button = document.querySelector("[data-theme-button]");
    button.hidden = false;
    button.addEventListener("click", () => {
      at = (at + 1) % names.length;
      show(names[at]);
      try {
        localStorage.setItem("theme", names[at]);
      } catch {
        // see above
      }
    });
  });
})();
