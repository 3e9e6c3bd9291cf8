// Search in a site that is opened from a folder: browsers start no worker from file://, so its script
// runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<title>search</title>";
      this.inside = new Promise(ready => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          // the worker's answers
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = frame.contentDocument.createElement("script");
          script.src = new URL(url, location.href);
          script.onload = () => ready(inside);
          frame.contentDocument.head.append(script);
        };
      });
      document.body.append(frame);
    }

    async postMessage(data) {
      const inside = await this.inside;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
  };
}
