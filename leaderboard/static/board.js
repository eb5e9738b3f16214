// Sort, filter, search and link a table; point at its plot; copy commands. Without it the page reads as it is.
"use strict";

(() => {
  const table = document.querySelector("table[data-board]");
  if (!table) return;

  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const search = document.querySelector("[data-search]");
  const filters = [...document.querySelectorAll("[data-need]")];
  const picks = [...document.querySelectorAll("[data-pick]")];
  const count = document.querySelector("[data-count]");
  const plot = document.querySelector("svg[data-plot]");
  const points = new Map(plot ? [...plot.querySelectorAll("[data-row]")].map((p) => [p.dataset.row, p]) : []);
  const rows = [...body.rows].map((row, place) => ({
    row,
    place,
    name: row.dataset.row,
    has: new Set((row.dataset.has || "").split(" ")),
    words: row.textContent.toLowerCase(),
    values: {},
    shown: true,
    later: row.classList.contains("later"),
  }));
  const more = document.querySelector("[data-more]");
  const byName = new Map(rows.map((entry) => [entry.name, entry]));
  const STEP = Number(table.dataset.step); // rows laid out at once; the next ones follow when the page is scrolled
  let ordered = rows;
  let limit = STEP;
  let placed = 0; // so many of the rows shown are in order
  let moved = false; // out of the order in which the page came
  const state = { q: "", sort: "", down: false, on: new Set(), row: "" };

  // ---- the address: everything after # is the state of the page

  function read() {
    const said = new URLSearchParams(location.hash.slice(1));
    const sort = (said.get("sort") || "").split("-");
    state.q = said.get("q") || "";
    state.sort = heads.some((head) => head.dataset.sort && head.dataset.sort === sort[0]) ? sort[0] : "";
    state.down = sort[1] === "down";
    const known = new Set(filters.map((filter) => filter.dataset.need));
    for (const option of picks.flatMap((pick) => [...pick.options])) known.add(option.value);
    state.on = new Set((said.get("only") || "").split(",").filter((name) => name && known.has(name)));
    state.row = byName.has(said.get("row")) ? said.get("row") : "";
  }

  function write() {
    const said = new URLSearchParams();
    if (state.q) said.set("q", state.q);
    if (state.sort) said.set("sort", `${state.sort}-${state.down ? "down" : "up"}`);
    if (state.on.size) said.set("only", [...state.on].join(","));
    if (state.row) said.set("row", state.row);
    history.replaceState(null, "", `#${said}`);
  }

  // ---- order and choice of rows

  function value(entry, column) {
    if (!(column in entry.values)) {
      const cell = entry.row.cells[column];
      const text = cell.dataset.v ?? cell.textContent.trim();
      const number = heads[column].dataset.text === undefined ? Number(text) : Number.NaN; // 2019 and 2019-06 are texts
      entry.values[column] = text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
    }
    return entry.values[column];
  }

  function compare(a, b) {
    if (a === b) return 0;
    if (typeof a === typeof b) return a < b ? -1 : 1;
    return typeof a === "number" ? -1 : 1;
  }

  function order() {
    const column = heads.findIndex((head) => head.dataset.sort && head.dataset.sort === state.sort);
    const sorted = [...rows];
    if (column >= 0) {
      sorted.sort((a, b) => {
        const first = value(a, column);
        const second = value(b, column);
        if (first === null || second === null) return (first === null) - (second === null) || a.place - b.place;
        return (state.down ? compare(second, first) : compare(first, second)) || a.place - b.place;
      });
    }
    for (const head of heads) {
      if (!head.dataset.sort) continue;
      if (head.dataset.sort === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    ordered = sorted;
    limit = STEP;
    placed = 0;
    reveal();
  }

  // Only rows within the limit take room, and only they are put in order: moving a thousand takes too long.
  function reveal() {
    const shown = ordered.filter((entry) => entry.shown);
    const within = new Set(shown.slice(0, limit));
    for (const entry of rows) {
      const later = entry.shown && !within.has(entry);
      if (entry.later !== later) entry.row.classList.toggle("later", later);
      entry.later = later;
    }
    const list = shown.slice(placed, limit).map((entry) => entry.row);
    if (state.sort || moved) {
      if (placed === 0) body.prepend(...list);
      else shown[placed - 1].row.after(...list);
      moved = true;
    }
    placed = Math.min(limit, shown.length);
    more.hidden = shown.length <= limit;
    more.firstElementChild.textContent = `Show the other ${shown.length - limit}`;
  }

  function choose() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      entry.shown = [...state.on].every((need) => entry.has.has(need)) && words.every((w) => entry.words.includes(w));
      if (entry.row.hidden === entry.shown) entry.row.hidden = !entry.shown;
      points.get(entry.name)?.classList.toggle("off", !entry.shown);
      shown += entry.shown;
    }
    limit = STEP;
    placed = 0;
    reveal();
    const all = rows.length === 1 ? "1 entry" : `${rows.length} entries`;
    count.textContent = shown === rows.length ? all : `${shown} of ${all}`;
  }

  function mark(scroll) {
    for (const old of document.querySelectorAll(".marked")) old.classList.remove("marked");
    if (!state.row) return;
    const { row } = byName.get(state.row);
    limit = Math.max(limit, 1 + ordered.filter((entry) => entry.shown).indexOf(byName.get(state.row)));
    reveal();
    row.classList.add("marked");
    points.get(state.row)?.classList.add("marked");
    if (scroll) row.scrollIntoView({ block: "center" });
  }

  function apply(scroll) {
    if (search.value !== state.q) search.value = state.q;
    for (const filter of filters) filter.checked = state.on.has(filter.dataset.need);
    for (const pick of picks) pick.value = [...pick.options].find((option) => state.on.has(option.value))?.value ?? "";
    order();
    choose();
    mark(scroll);
  }

  // ---- what people do

  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button")?.closest("th");
    if (!head) return;
    const same = state.sort === head.dataset.sort;
    state.down = same ? !state.down : head.dataset.first === "down";
    state.sort = head.dataset.sort;
    order();
    write();
  });

  body.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link?.getAttribute("href").startsWith("#row=") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // the row joins what the address says already
    state.row = link.closest("tr").dataset.row;
    write();
    mark(false);
  });

  search.addEventListener("input", () => {
    state.q = search.value.trim();
    choose();
    write();
  });

  for (const filter of filters) {
    filter.addEventListener("change", () => {
      if (filter.checked) state.on.add(filter.dataset.need);
      else state.on.delete(filter.dataset.need);
      choose();
      write();
    });
  }

  for (const pick of picks) {
    pick.addEventListener("change", () => {
      for (const option of pick.options) state.on.delete(option.value);
      if (pick.value) state.on.add(pick.value);
      choose();
      write();
    });
  }

  function step(by) {
    const shown = ordered.filter((entry) => entry.shown).map((entry) => entry.row);
    const at = shown.indexOf(document.activeElement.closest("tbody tr"));
    const next = shown[at < 0 ? (by > 0 ? 0 : -1) : at + by];
    if (next) {
      limit = Math.max(limit, 1 + shown.indexOf(next));
      reveal();
      next.querySelector("th a").focus();
    }
    if (!next && at + by < 0) search.focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search]");
    const inTable = event.target.closest("tbody") === body;
    if (event.key === "/" && !typing) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && typing) {
      search.value = "";
      search.dispatchEvent(new Event("input"));
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (typing || inTable)) {
      event.preventDefault();
      step(event.key === "ArrowDown" ? 1 : -1);
    }
  });

  function revealAll() {
    limit = rows.length;
    reveal();
  }

  more.addEventListener("click", revealAll);
  addEventListener("beforeprint", revealAll);

  new IntersectionObserver(
    (seen) => {
      if (!seen[0].isIntersecting || more.hidden) return;
      limit += STEP;
      reveal();
    },
    { rootMargin: "900px" },
  ).observe(more);

  addEventListener("hashchange", () => {
    read();
    apply(true);
  });

  // ---- the plot: the nearest point tells what it is

  if (plot) {
    const tip = document.querySelector("[data-tip]");
    const places = [...points].map(([name, p]) => ({ name, p, x: +p.getAttribute("cx"), y: +p.getAttribute("cy") }));
    let near = null;

    function leave() {
      near?.p.classList.remove("near");
      if (near) byName.get(near.name).row.classList.remove("near");
      near = null;
      tip.hidden = true;
    }

    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const scale = plot.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale;
      const y = (event.clientY - box.top) * scale;
      let best = null;
      let least = (26 * scale) ** 2;
      for (const place of places) {
        const distance = (place.x - x) ** 2 + (place.y - y) ** 2;
        if (distance < least && byName.get(place.name).shown) [best, least] = [place, distance];
      }
      if (best === near) return;
      leave();
      if (!best) return;
      near = best;
      best.p.classList.add("near");
      const { row } = byName.get(best.name);
      row.classList.add("near");
      tip.replaceChildren();
      const title = document.createElement("b");
      title.textContent = row.querySelector("th a").textContent;
      tip.append(title);
      for (const line of row.dataset.figures.split("\n")) {
        const part = document.createElement("span");
        part.textContent = line;
        tip.append(part);
      }
      tip.hidden = false;
      const left = best.x / scale;
      tip.style.left = `${Math.min(Math.max(left - tip.offsetWidth / 2, 0), box.width - tip.offsetWidth)}px`;
      const above = best.y / scale - tip.offsetHeight - 12;
      tip.style.top = `${above < 0 ? best.y / scale + 14 : above}px`;
    });
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("click", () => {
      if (!near) return;
      state.row = near.name;
      write();
      mark(true);
    });
  }

  document.querySelector("[data-controls]").hidden = false;
  read();
  if (location.hash.length > 1) apply(true);
  else choose();
})();
