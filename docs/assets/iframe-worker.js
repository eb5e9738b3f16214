// A page opened from a file may not start a worker, and the search runs in one. Here it runs in a hidden frame instead,
// which knows the two things that it asks for: messages from the page, and messages to it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside.importScripts = (...scripts) =>
        scripts.reduce((before, script) => before.then(() => this.load(script)), Promise.resolve())
      this.ready = this.load(new URL(address, location.href).href)
    }

    load(address) {
      return new Promise((loaded, failed) => {
        const script = this.inside.document.createElement("script")
        script.src = address
        script.onload = loaded
        script.onerror = failed
        this.inside.document.documentElement.append(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
  }
}
