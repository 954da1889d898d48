// A replay buffer as a strip of rows. A click on the strip asks for the row there; "Draw a sample" for a batch.
//   page -> kernel  {kind: "hello"}  {kind: "draw"}  {kind: "row", place}
//   kernel -> page  {kind: "state", facts, cursor, ages, priorities, ticks, stored, drawn}  {kind: "row", place, head, html}

const HEIGHTS = { strip: 46, priorities: 54, ages: 118 };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && name !== "style") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

class Replay {
  constructor(model, el) {
    this.model = model;
    this.config = model.get("config");
    this.state = this.config.state;
    this.chosen = null;
    this.build();
    el.replaceChildren(this.root);
    this.listener = (message) => this.hear(message);
    model.on("msg:custom", this.listener);
    this.watch = new ResizeObserver(() => this.plan());
    this.watch.observe(this.root);
    this.themes = new MutationObserver(() => this.plan());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    model.send({ kind: "hello" });
    this.plan();
  }
  dispose() {
    this.watch.disconnect();
    this.themes.disconnect();
    cancelAnimationFrame(this.frame);
    this.model.off?.("msg:custom", this.listener);
  }
  build() {
    const canvas = (name, label) => {
      const node = make("canvas", { style: `height: ${HEIGHTS[name]}px` });
      node.setAttribute("role", "img");
      node.setAttribute("aria-label", label);
      return (this[name] = node);
    };
    this.facts = make("div", { className: "facts" });
    this.draw = make("button", { type: "button", className: "primary", textContent: "Draw a sample" });
    this.draw.addEventListener("click", () => this.model.send({ kind: "draw" }));
    this.priorityBox = make("div", { className: "panel" }, make("p", { className: "note", textContent: "Priority" }), canvas("priorities", "Priorities of the rows"));
    const rows = make("div", { className: "panel" },
      make("p", { className: "note", textContent: "Rows: the darker the newer. The line is where the next row goes; ticks are the sample. Click, or use the arrow keys, to look at one." }),
      canvas("strip", "Rows of the buffer"), this.priorityBox);
    this.agesText = make("p", { className: "note" });
    const ages = make("div", { className: "panel" }, this.agesText, canvas("ages", "Ages of the stored and of the drawn rows"));
    this.head = make("h4", { textContent: "" });
    this.table = make("div", { className: "row" });
    this.detail = make("div", { className: "detail", hidden: true }, this.head, this.table);
    this.detail.setAttribute("aria-live", "polite");
    this.root = make("div", { className: "rlb rlb-replay" },
      make("div", { className: "bar" }, make("h3", { textContent: this.config.title }), make("span", { className: "push" }), this.draw),
      this.facts, make("div", { className: "two" }, rows, ages), this.detail);
    this.strip.tabIndex = 0;
    this.strip.addEventListener("click", (event) => {
      const box = this.strip.getBoundingClientRect();
      this.ask((event.clientX - box.left) / box.width);
    });
    this.strip.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      this.ask(Math.min(1, Math.max(0, (this.chosen ?? 0) + by / this.config.bins)));
    });
  }
  ask(place) {
    this.chosen = place;
    this.plan();
    this.model.send({ kind: "row", place });
  }
  hear(message) {
    if (message.kind === "state") this.state = message;
    if (message.kind === "row") {
      this.chosen = message.place;
      this.head.textContent = message.head;
      this.table.innerHTML = message.html;
      this.detail.hidden = false;
    }
    this.plan();
  }
  plan() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }
  paint() {
    const style = getComputedStyle(this.root), color = (name) => this.resolve(style.getPropertyValue(name));
    this.colors = { age: color("--c0"), mark: color("--c1"), priority: color("--c2"), soft: color("--soft"), line: color("--muted"), ink: color("--ink") };
    const { facts, drawn, priorities } = this.state;
    this.facts.replaceChildren(...facts.map((fact) => make("span", { textContent: fact })));
    this.priorityBox.hidden = !priorities;
    this.agesText.textContent = `Age, from the newest to the oldest: stored${drawn ? ", and drawn (line)" : ""}`;
    this.paintStrip();
    if (priorities) this.paintBars(this.pen(this.priorities, HEIGHTS.priorities), priorities.map((p) => p ?? 0), this.colors.priority);
    this.paintAges();
  }
  resolve(value) {
    this.probe ??= this.root.appendChild(make("i", { hidden: true }));
    this.probe.style.color = value;
    return getComputedStyle(this.probe).color;
  }
  pen(canvas, height) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 300;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return Object.assign(pen, { wide: width, high: height });
  }
  paintStrip() {
    const pen = this.pen(this.strip, HEIGHTS.strip), { ages, ticks, cursor } = this.state, high = pen.high - 12;
    pen.fillStyle = this.colors.soft;
    pen.fillRect(0, 0, pen.wide, high);
    const step = pen.wide / ages.length;
    pen.fillStyle = this.colors.age;
    ages.forEach((age, i) => {
      if (age === null) return;
      pen.globalAlpha = 0.15 + 0.85 * (1 - age);
      pen.fillRect(Math.round(i * step), 0, Math.round((i + 1) * step) - Math.round(i * step), high);
    });
    pen.globalAlpha = 1;
    pen.fillStyle = this.colors.mark;
    pen.fillRect(cursor * pen.wide - 1, 0, 2.5, high);
    for (const tick of ticks) pen.fillRect(tick * pen.wide, high + 2, 1.2, 9);
    if (this.chosen !== null) {
      pen.strokeStyle = this.colors.ink;
      pen.lineWidth = 2;
      pen.strokeRect(this.chosen * pen.wide - 3, 1, 6, high - 2);
    }
  }
  paintBars(pen, values, color) {
    const most = Math.max(...values) || 1, step = pen.wide / values.length;
    pen.fillStyle = color;
    values.forEach((value, i) => pen.fillRect(i * step, pen.high * (1 - value / most), Math.max(step - 0.4, 0.8), (pen.high * value) / most));
  }
  paintAges() {
    const pen = this.pen(this.ages, HEIGHTS.ages), { stored, drawn } = this.state;
    const most = Math.max(...stored, ...(drawn ?? [])) * 1.05 || 1, step = pen.wide / stored.length, y = (value) => pen.high * (1 - value / most);
    pen.globalAlpha = 0.35;
    pen.fillStyle = this.colors.line;
    stored.forEach((value, i) => pen.fillRect(i * step, y(value), step - 1, pen.high - y(value)));
    pen.globalAlpha = 1;
    if (!drawn) return;
    pen.strokeStyle = this.colors.mark;
    pen.lineWidth = 2;
    pen.beginPath();
    drawn.forEach((value, i) => {
      pen.lineTo(i * step, y(value));
      pen.lineTo((i + 1) * step, y(value));
    });
    pen.stroke();
  }
}

export default {
  render({ model, el }) {
    const view = new Replay(model, el);
    return () => view.dispose();
  },
};
