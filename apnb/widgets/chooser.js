// A form whose rows are words to choose among. Python says what can be chosen (rows) and what is chosen (choice); the page shows a click
// at once and sends it to Python, which answers with rows and choice. A word that cannot be chosen stays in reach and says why.

const ROW_KINDS = { chips, multi: chips, select, text };

export function render({ model, el }) {
  el.classList.add("apnb-chooser");
  const rows = new Map(); // name -> {root, signature, update}
  const said = Object.assign(document.createElement("div"), { className: "apnb-why" });
  said.setAttribute("role", "status");
  const lab = () => el.closest(".apnb-lab") ?? el;
  let shown = model.get("choice");

  // Keys belong to the page: without this an x pressed in a list would cut the notebook's cell. JupyterLab asks the element itself.
  function shield() {
    for (const e of lab().querySelectorAll("button, select, input, textarea, [tabindex]")) {
      e.setAttribute("data-lm-suppress-shortcuts", "true");
    }
  }

  function choose(name, value, after = value) {
    shown = { ...shown, [name]: after };
    why("");
    draw();
    model.send({ name, value }); // a message of its own: of a trait that changes quickly only the last value arrives
  }

  function why(text, near) {
    said.textContent = text;
    said.hidden = !text;
    if (text && near) said.style.top = near.offsetTop + near.offsetHeight + 3 + "px"; // over the rows below: nothing moves
  }

  function take() {
    shown = model.get("choice");
    draw();
  }

  function draw() {
    const wanted = model.get("rows");
    for (const [name, row] of rows) {
      if (!wanted.some((w) => w.name === name)) row.root.remove(), rows.delete(name);
    }
    let before = null;
    for (const spec of wanted) {
      const signature = spec.kind + "|" + spec.options.map((o) => o.value + "\t" + o.text).join("\n");
      let row = rows.get(spec.name);
      if (!row || row.signature !== signature) {
        row?.root.remove();
        row = { signature, ...frame(spec, ROW_KINDS[spec.kind], choose, why) };
        rows.set(spec.name, row);
      }
      const place = before ? before.nextSibling : el.firstChild;
      if (row.root !== place) el.insertBefore(row.root, place);
      row.update(spec, shown[spec.name]);
      before = row.root;
    }
    el.append(said);
    shield();
  }

  model.on("change:rows", take);
  model.on("change:choice", take);
  model.on("msg:custom", take); // a click that was refused
  const settle = () =>
    setTimeout(() => {
      window.dispatchEvent(new Event("resize")); // figures take the width there is
      shield();
      lab().querySelector(".apnb-progress [role=progressbar], .apnb-progress")?.setAttribute("aria-label", "progress of all runs");
      for (const plot of lab().querySelectorAll(".js-plotly-plot")) {
        plot.setAttribute("role", "figure");
        plot.setAttribute("aria-label", model.get("told"));
      }
    }, 80);
  model.on("change:drawn", settle);
  why("");
  draw();
  settle();
  setTimeout(settle, 800); // on the first page the figure may come later
  let width = 0;
  const watch = new ResizeObserver(() => el.offsetWidth !== width && ((width = el.offsetWidth), settle())); // a sidebar opens, say
  watch.observe(el);
  return () => watch.disconnect();
}

function frame(spec, kind, choose, why) {
  const root = document.createElement("div");
  root.className = "apnb-row";
  root.dataset.dimension = spec.name;
  root.dataset.kind = spec.kind;
  const title = Object.assign(document.createElement("span"), { className: "apnb-title", textContent: spec.title });
  title.id = "apnb-" + spec.name + "-" + Math.random().toString(36).slice(2);
  root.append(title);
  return { root, update: kind(root, spec, choose, why, title.id) };
}

function chips(root, spec, choose, why, label) {
  const box = Object.assign(document.createElement("div"), { className: "apnb-chips" });
  box.setAttribute("role", "group");
  box.setAttribute("aria-labelledby", label);
  const several = spec.kind === "multi";
  let now = spec, value;
  const buttons = spec.options.map((o) => {
    const b = document.createElement("button");
    b.type = "button";
    b.textContent = o.text;
    b.dataset.value = o.value;
    const reason = () => now.options.find((x) => x.value === o.value)?.reason || "";
    b.addEventListener("click", () => {
      if (reason()) return why(reason(), b);
      if (!several) return choose(spec.name, o.value);
      choose(spec.name, o.value, value.includes(o.value) ? value.filter((v) => v !== o.value) : [...value, o.value]);
    });
    b.addEventListener("mouseenter", () => why(reason(), b));
    b.addEventListener("focus", () => why(reason(), b));
    b.addEventListener("mouseleave", () => why(""));
    b.addEventListener("blur", () => why(""));
    box.append(b);
    return b;
  });
  root.append(box);
  return (next, chosen) => {
    (now = next), (value = chosen);
    for (const b of buttons) {
      const option = next.options.find((o) => o.value === b.dataset.value);
      const on = several ? chosen.includes(option.value) : option.value === chosen;
      b.setAttribute("aria-pressed", on);
      b.setAttribute("aria-disabled", !!option.reason);
      b.title = option.reason;
    }
  };
}

function select(root, spec, choose, why, label) {
  const box = document.createElement("select");
  box.setAttribute("aria-labelledby", label);
  for (const o of spec.options) box.append(Object.assign(document.createElement("option"), { value: o.value, textContent: o.text }));
  let shut = "";
  box.addEventListener("change", () => choose(spec.name, box.value));
  box.addEventListener("focus", () => why(shut, box));
  box.addEventListener("blur", () => why(""));
  root.append(box);
  return (next, chosen) => {
    for (const o of box.options) {
      const option = next.options.find((x) => x.value === o.value);
      o.disabled = !!option.reason;
      o.title = option.reason;
    }
    if (box.value !== chosen) box.value = chosen;
    shut = [...new Set(next.options.map((o) => o.reason))].filter(Boolean).join("; ");
    box.title = shut;
  };
}

function text(root, spec, choose, why, label) {
  const box = document.createElement("input");
  box.type = "text";
  box.placeholder = spec.hint || "";
  box.setAttribute("aria-labelledby", label);
  box.addEventListener("change", () => choose(spec.name, box.value));
  box.addEventListener("keydown", (e) => e.key === "Enter" && choose(spec.name, box.value)); // JupyterLab keeps the change of an Enter
  root.append(box);
  return (next, chosen) => {
    if (document.activeElement !== box && box.value !== String(chosen)) box.value = chosen;
  };
}

export default { render };
