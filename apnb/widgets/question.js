// A question with its answer: choices or a number, judged in the page, live and static alike.

const CSS = `
.root { font-size: 14px; line-height: 1.45; color: var(--jp-content-font-color1, inherit); max-width: 46em; margin: 4px 0;
  border-left: 4px solid #E69F00; padding: 6px 14px 8px; text-align: left; background: color-mix(in srgb, currentColor 5%, transparent) }
.text { margin: 0 0 6px; font-weight: 600 } .row { display: flex; flex-wrap: wrap; gap: 6px; align-items: center }
button, input { font: inherit; color: inherit; background: transparent; padding: 3px 10px; border-radius: 4px;
  border: 1px solid color-mix(in srgb, currentColor 35%, transparent) }
button { cursor: pointer } input { width: 9em } .show { border-color: transparent; text-decoration: underline; opacity: .85 }
button[aria-pressed=true] { background: color-mix(in srgb, #0072B2 30%, transparent); border-color: currentColor }
:focus-visible { outline: 2.5px solid #E69F00; outline-offset: 1px }
.said { margin: 8px 0 0; min-height: 1.45em }`;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export default {
  render({ model, el }) {
    const [text, answer, choices, unit, told] = ["text", "answer", "choices", "unit", "told"].map((name) => model.get(name));
    const said = make("p", { class: "said", role: "status" });
    const judge = (given) => {
      const right = choices.length ? given === answer : Math.abs(given - answer) <= model.get("tolerance") + 1e-12;
      said.textContent = right ? `✓ Yes: ${told}` : "✗ Not this one. Look again, or show the answer.";
      model.set("given", given);
      model.save_changes();
    };
    const row = make("div", { class: "row" });
    if (choices.length) {
      const buttons = choices.map((choice) => make("button", { "aria-pressed": "false", onclick: () => {
        for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === choice));
        judge(choice);
      } }, choice));
      row.append(...buttons);
    } else {
      const input = make("input", { type: "text", inputmode: "decimal", "aria-label": unit ? `number in ${unit}` : "number" });
      const read = () => {
        const typed = input.value.trim(), bare = unit && typed.endsWith(unit) ? typed.slice(0, -unit.length).trim() : typed;
        const given = Number(bare.replace(",", "."));
        if (!bare || !Number.isFinite(given)) said.textContent = "Type a number, such as 12.5.";
        else judge(given);
      };
      input.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.key === "Enter") read(); });
      row.append(input, ...(unit ? [unit] : []), make("button", { onclick: read }, "Check"));
    }
    row.append(make("button", { class: "show", onclick: () => { said.textContent = `Answer: ${told}`; } }, "Show the answer"));
    const root = make("div", { class: "root", role: "group", "aria-label": "Question" }, make("p", { class: "text" }, text), row, said);
    const host = make("div", { "data-lm-suppress-shortcuts": "true" });  // keys typed here are no commands of JupyterLab
    host.attachShadow({ mode: "open" }).append(make("style", {}, CSS), root);
    el.append(host);
  },
};
