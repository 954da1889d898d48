// A multiple-choice question. The page gives its verdict at once; the kernel learns of the choice.
//   page -> kernel  {kind: "hello"}  {kind: "answer", index}      kernel -> page  {kind: "chosen", index}

let quizzes = 0;

class Question {
  constructor(model, el) {
    this.model = model;
    this.config = model.get("config");
    this.build(`rlb-quiz-${++quizzes}-${Math.random().toString(36).slice(2)}`);
    el.replaceChildren(this.root);
    this.listener = (message) => message.kind === "chosen" && this.judge(message.index);
    model.on("msg:custom", this.listener);
    model.send({ kind: "hello" });
  }
  dispose() {
    this.model.off?.("msg:custom", this.listener);
  }
  build(name) {
    const { question, options } = this.config;
    this.root = document.createElement("div");
    this.root.className = "rlb rlb-quiz";
    this.root.innerHTML =
      `<fieldset><legend>${question}</legend>` +
      options.map((option, i) => `<label><input type="radio" name="${name}" value="${i}"><span>${option}</span></label>`).join("") +
      `</fieldset><p class="verdict" role="status"></p>`;
    this.labels = [...this.root.querySelectorAll("label")];
    this.verdict = this.root.querySelector(".verdict");
    this.root.addEventListener("change", (event) => {
      const index = +event.target.value;
      this.judge(index);
      this.model.send({ kind: "answer", index });
    });
  }
  judge(index) {
    if (index === null || index === undefined) return;
    const right = index === this.config.answer, word = right ? "Right." : "Not quite.";
    this.labels.forEach((label, i) => {
      label.classList.toggle("right", i === index && right);
      label.classList.toggle("wrong", i === index && !right);
      label.querySelector("input").checked = i === index;
    });
    this.verdict.innerHTML = `<b class="${right ? "right" : "wrong"}">${word}</b> ${this.config.notes[index] || (right ? "" : "Try again.")}`;
  }
}

export default {
  render({ model, el }) {
    const question = new Question(model, el);
    return () => question.dispose();
  },
};
