// A film of a rollout. The kernel sends its frames once, side by side in a few pictures:
//   page -> kernel  {kind: "hello"}      kernel -> page  {kind: "frames"} and one WebP per `perStrip` frames

const ICONS = {
  play: "M2 1l9 5-9 5z", pause: "M2 1h3v10H2zM7 1h3v10H7z", back: "M10 1L4 6l6 5zM1.5 1H4v10H1.5z", next: "M2 1l6 5-6 5zM8 1h2.5v10H8z",
};

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && name !== "style") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const icon = (name) => `<svg viewBox="0 0 12 12" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;

class Film {
  constructor(model, el) {
    this.config = model.get("config");
    this.strips = [];
    this.at = 0;
    this.playing = false;
    this.build();
    el.replaceChildren(this.root);
    this.listener = (message, buffers) => message.kind === "frames" && this.load(buffers);
    model.on("msg:custom", this.listener);
    this.dispose = () => {
      this.play(false);
      model.off?.("msg:custom", this.listener);
    };
    model.send({ kind: "hello" });
    this.show(0);
  }
  build() {
    const { count, width, height, labels } = this.config;
    this.canvas = make("canvas", { width, height, tabIndex: 0, style: `aspect-ratio: ${width} / ${height}` });
    this.canvas.setAttribute("role", "img");
    this.scrub = make("input", { type: "range", min: 0, max: count - 1, step: 1, value: 0 });
    this.scrub.setAttribute("aria-label", "Frame");
    this.place = make("output");
    this.toggle = this.button("play", "Play", () => this.play(!this.playing));
    const back = this.button("back", "Previous frame", () => this.step(-1)), next = this.button("next", "Next frame", () => this.step(1));
    this.speed = make("select", { title: "Speed" }, ...[0.25, 0.5, 1, 2, 4].map((s) => make("option", { value: s, textContent: `${s}×`, selected: s === 1 })));
    this.speed.setAttribute("aria-label", "Speed");
    this.caption = make("span", { className: "caption push", hidden: !labels });
    const bar = make("div", { className: "bar" }, this.toggle, back, next, this.speed, this.caption);
    this.root = make("div", { className: "rlb rlb-viewer" }, this.canvas, make("div", { className: "scrub" }, this.scrub, this.place), bar);
    this.scrub.addEventListener("input", () => {
      this.play(false);
      this.show(+this.scrub.value);
    });
    this.canvas.addEventListener("click", () => this.play(!this.playing));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }
  button(name, text, act) {
    const node = make("button", { type: "button", innerHTML: icon(name), title: text, className: "small" });
    node.setAttribute("aria-label", text);
    node.addEventListener("click", act);
    return node;
  }
  key(event) {
    const last = this.config.count - 1;
    const act = {
      " ": () => this.play(!this.playing), ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      Home: () => this.show(0), End: () => this.show(last),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }
  load(buffers) {
    this.strips = buffers.map((buffer) => {
      const strip = new Image();
      const url = URL.createObjectURL(new Blob([buffer], { type: "image/webp" }));
      strip.onload = () => {
        URL.revokeObjectURL(url);
        this.show(this.at);
      };
      strip.src = url;
      return strip;
    });
  }
  step(by) {
    this.play(false);
    this.show(Math.min(this.config.count - 1, Math.max(0, this.at + by)));
  }
  show(at) {
    const { count, width, height, perStrip, labels } = this.config;
    this.at = at;
    this.scrub.value = at;
    this.place.textContent = `${at + 1} / ${count}`;
    if (labels) this.caption.textContent = labels[at];
    this.canvas.setAttribute("aria-label", `Frame ${at + 1} of ${count}${labels ? `: ${labels[at]}` : ""}. Space plays, arrow keys step.`);
    const strip = this.strips[Math.floor(at / perStrip)];
    if (!strip?.complete || !strip.naturalWidth) return;
    const pen = this.canvas.getContext("2d");
    pen.drawImage(strip, (at % perStrip) * width, 0, width, height, 0, 0, width, height);
  }
  play(on) {
    if (on === this.playing) return;
    this.playing = on;
    this.toggle.innerHTML = icon(on ? "pause" : "play");
    this.toggle.title = on ? "Pause" : "Play";
    this.toggle.setAttribute("aria-label", this.toggle.title);
    cancelAnimationFrame(this.frame);
    if (!on) return;
    if (this.at === this.config.count - 1) this.show(0);
    let last = performance.now(), rest = 0;
    const tick = (now) => {
      rest += ((now - last) / 1000) * this.config.fps * +this.speed.value;
      last = now;
      const ahead = Math.floor(rest);
      rest -= ahead;
      if (ahead) this.show(Math.min(this.config.count - 1, this.at + ahead));
      if (this.at === this.config.count - 1) this.play(false);
      else this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }
}

export default {
  render({ model, el }) {
    const film = new Film(model, el);
    return () => film.dispose();
  },
};
