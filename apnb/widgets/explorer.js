// The taxonomy explorer and the leaderboard: one file, with a kernel (anywidget's model) and without (a stand-in, model.static).
// All state is in the model; a change of it redraws. The drawing hangs in a shadow root: it inherits the page's colours and fonts.

const COLOURS = { after: "#0072B2", before: "#D55E00", during: "#009E73" };
const GREY = "#888888";
const STRUCTURES = { weights: "circle", filters: "square", channels: "diamond", kernels: "triangle" };
const SHAPES = { ...STRUCTURES, unstructured: "circle", structured: "square" };
const DASHES = { lwm: "", relwm: "7 4", solwm: "12 4", lis: "7 3 2 3", hgm: "12 3 2 3", bcs: "12 3 3 3 3 3" };

const CSS = `
.root { position: relative; font-size: 13px; line-height: 1.4; color: var(--jp-content-font-color1, inherit);
  --line: color-mix(in srgb, currentColor 22%, transparent); --faint: color-mix(in srgb, currentColor 8%, transparent);
  --accent: #0072B2; text-align: left; container-type: inline-size }
* { box-sizing: border-box }
button, select, input { font: inherit; color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 4px }
option { background: var(--jp-layout-color1, Canvas); color: var(--jp-content-font-color1, CanvasText) }
button { cursor: pointer } button:disabled { cursor: default; opacity: .45 }
a { color: inherit; text-decoration: underline }
:focus-visible { outline: 2.5px solid #E69F00; outline-offset: 1px }
.bar { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin: 6px 0 }
.bar input { padding: 3px 8px; width: 220px } .bar select, .bar button { padding: 2px 8px }
.count { min-width: 15em; font-variant-numeric: tabular-nums }
.facet { display: flex; align-items: baseline; gap: 6px; margin: 1px 0 } .facet > b { flex: 0 0 120px; font-weight: 600 }
.chips { display: flex; flex-wrap: wrap; gap: 3px 5px; max-height: 78px; overflow: auto; padding: 2px }
.chip { padding: 0 6px; border-radius: 10px; white-space: nowrap }
.chip i { display: inline-block; min-width: 1.7em; text-align: right;
  font-style: normal; opacity: .7; font-variant-numeric: tabular-nums }
.chip.none:not([aria-pressed=true]) { opacity: .45 }
[aria-pressed=true], [aria-selected=true] { background: color-mix(in srgb, var(--accent) 32%, transparent); border-color: currentColor }
.scroll { overflow: auto; position: relative }
.two { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px }
.card { height: 440px; border: 1px solid var(--line); border-radius: 6px; padding: 4px 14px 10px; overflow: auto }
@container (min-width: 1000px) { .two { grid-template-columns: minmax(0, 1fr) 400px; align-items: start } .card { height: 470px }
  .facets { display: grid; grid-template-columns: 1fr 1fr; grid-auto-flow: dense; gap: 0 24px }
  .facet.wide { grid-column: 1 / -1 } }
.card h3 { margin: 8px 0 2px; font-size: 17px } .card h4 { margin: 12px 0 2px; font-size: 13px } .card p { margin: 4px 0 }
.card pre { user-select: all; background: var(--faint); padding: 6px 8px; margin: 4px 0; overflow: auto; font-size: 12px }
.card dl { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 1px 10px } dt { opacity: .75 } dd { margin: 0 }
.card details { margin: 4px 0 } summary { cursor: pointer }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; opacity: .8; padding: 4px 0; white-space: normal }
th { font-weight: 600; text-align: left }
.grid { width: 100% } .grid th, .grid td { border: 1px solid var(--line); padding: 3px 4px; vertical-align: top }
.grid thead th, .grid tbody th { overflow-wrap: anywhere } .grid tbody th { min-width: 4.6em }
.grid .empty { opacity: .6; font-size: 11px; display: block; min-height: 20px; border-radius: 3px }
.grid td.nobody { background: repeating-linear-gradient(135deg, var(--faint) 0 4px, transparent 4px 9px) }
.name { display: flex; gap: 3px; align-items: center; border: 0; padding: 0 2px; width: 100%; text-align: left;
  white-space: nowrap; font-size: 12px }
.name svg { flex: none } .name:disabled { opacity: .22 }
.rows td, .rows th { padding: 1px 8px; white-space: nowrap } .card .rows td, .card .rows th { padding: 1px 4px }
.rows thead th { position: sticky; top: 0; z-index: 1; padding: 2px;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-content-font-color1, CanvasText) }
.rows th button { width: 100%; border: 0; text-align: inherit; font-weight: 600; padding: 1px 6px; white-space: nowrap }
.rows tbody tr:nth-child(even) > * { background: var(--faint) } .number { text-align: right }
.rows .name { font-size: 13px; width: auto }
.rows tbody tr.chosen > * { background: color-mix(in srgb, #E69F00 30%, transparent) }
.view { height: 560px; border-top: 1px solid var(--line) } .panels { display: flex; flex-wrap: wrap; gap: 4px 8px }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; align-content: center } .keys { min-height: 38px }
.legend span { display: inline-flex; gap: 4px; align-items: center }
figure { margin: 0 } figcaption { font-weight: 600; font-size: 12.5px; padding: 4px 0 0 4px }
svg text { fill: currentColor; font-size: 11px } svg { display: block }
.front { fill: none; stroke: currentColor; stroke-opacity: .6; stroke-width: 1.4; stroke-dasharray: 4 3 }
.axis { stroke: var(--line); fill: none } [data-of] { transition: opacity .1s } .off { opacity: .13 }
g[data-pick] { cursor: pointer }
.mark:focus-visible { outline-offset: 2px; border-radius: 6px } .small { opacity: .8; font-size: 12px }
.tip { position: absolute; z-index: 5; pointer-events: none; max-width: 320px; padding: 5px 9px; border-radius: 4px; white-space: pre-line;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-content-font-color1, CanvasText); font-size: 12px;
  border: 1px solid GrayText; box-shadow: 0 2px 8px #0005 }
.tip[hidden] { display: none }`;

// --- elements ---------------------------------------------------------------------------------------------------------------

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function outline(shape, x, y, r) {
  if (shape === "square") return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
  if (shape === "diamond") return `M${x},${y - 1.3 * r}l${1.3 * r},${1.3 * r}l${-1.3 * r},${1.3 * r}l${-1.3 * r},${-1.3 * r}z`;
  if (shape === "triangle") return `M${x},${y - 1.2 * r}l${1.2 * r},${2.2 * r}h${-2.4 * r}z`;
  return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`;
}

function glyph(shapes, colour, more = {}) {
  const width = 11 * shapes.length;
  return s("svg", { width, height: 11, "aria-hidden": "true" }, shapes.map((shape, i) =>
    s("path", { d: outline(shape, 5.5 + 11 * i, 5.5, 3.8), fill: colour, ...more })));
}

const percent = (share) => (share === null ? "?" : `${+(100 * share).toFixed(2)} %`);
const grouped = (rows, key) => [...rows.reduce((map, r) => map.set(key(r), [...(map.get(key(r)) ?? []), r]), new Map())];
const unique = (values) => [...new Set(values)];

// --- what both have: filters with counts, tooltips, arrow keys ----------------------------------------------------------------

function passing(items, filters, has, except) {
  const active = Object.entries(filters).filter(([name, words]) => name !== except && words.length);
  return items.filter((item) => active.every(([name, words]) => has(item, name).some((w) => words.includes(w))));
}

// One row of buttons for each dimension, built once; `update` sets what is pressed and the counts, so nothing moves.
function facets(model, dimensions, items, has) {
  const chips = [];
  const toggle = (name, word) => {
    const old = model.get("filters")[name] ?? [];
    const words = old.includes(word) ? old.filter((w) => w !== word) : [...old, word];
    const { [name]: _, ...rest } = model.get("filters");
    model.set("filters", words.length ? { ...rest, [name]: words } : rest);
    model.save_changes();
  };
  const element = h("div", { class: "facets" }, dimensions.map((d) =>
    h("div", { class: d.words.length > 7 ? "facet wide" : "facet", role: "group", "aria-label": d.title },
      h("b", {}, d.title), h("div", { class: "chips" },
      d.words.map(({ word, label, text }) => {
        const count = h("i");
        const button = h("button", { class: "chip", type: "button", "data-dimension": d.name, "data-word": word, "data-tip": text || null,
          onclick: () => toggle(d.name, word) }, label, " ", count);
        chips.push({ name: d.name, word, button, count, label });
        return button;
      })))));
  const update = (found) => {
    const filters = model.get("filters");
    for (const { name } of dimensions) {
      const left = passing(found, filters, has, name);
      for (const chip of chips.filter((c) => c.name === name)) {
        const n = left.filter((item) => has(item, name).includes(chip.word)).length;
        chip.count.textContent = n;
        chip.button.classList.toggle("none", !n);
        chip.button.setAttribute("aria-pressed", (filters[name] ?? []).includes(chip.word));
        chip.button.setAttribute("aria-label", `${chip.label}, ${n}`);
      }
    }
  };
  return { element, update };
}

// Elements with data-tip show it while the pointer is over them or they have the focus.
function tooltips(root) {
  const tip = h("div", { class: "tip", role: "tooltip", hidden: true });
  root.append(tip);
  const show = (event) => {
    const on = event.target.closest?.("[data-tip]");
    tip.hidden = !on;
    if (!on) return;
    tip.textContent = on.dataset.tip;
    const [a, b] = [on.getBoundingClientRect(), root.getBoundingClientRect()];
    const left = Math.min(a.left - b.left + a.width / 2, b.width - tip.offsetWidth - 4);
    const above = a.top - b.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${above > 0 ? above : a.bottom - b.top + 8}px`;
  };
  root.addEventListener("mouseover", show);
  root.addEventListener("focusin", show);
  for (const gone of ["mouseleave", "focusout"]) root.addEventListener(gone, () => (tip.hidden = true));
  root.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  return () => (tip.hidden = true);
}

// Elements with data-item are one stop of the tab key; arrows go to the nearest in that direction, Enter picks.
function arrows(view, pick) {
  const all = () => [...view.querySelectorAll("[data-item]:not(:disabled)")];
  const centre = (e) => { const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; };
  let last = null;
  const settle = () => {
    const items = all();
    const stop = items.find((e) => e.dataset.item === last) ?? items[0];
    for (const e of items) e.setAttribute("tabindex", e === stop ? 0 : -1);
    return stop;
  };
  view.addEventListener("keydown", (event) => {
    const from = event.target.closest("[data-item]");
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!from) return;
    if (way) {
      event.preventDefault();
      const [x, y] = centre(from);
      let best = null, least = Infinity;
      for (const e of all()) {
        const [dx, dy] = centre(e).map((c, i) => c - [x, y][i]);
        const along = dx * way[0] + dy * way[1], across = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
        if (along > 2 && along + 3 * across < least) [best, least] = [e, along + 3 * across];
      }
      best?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (from.dataset.pick) pick(from.dataset.pick);
    }
  });
  view.addEventListener("focusin", (event) => { last = event.target.closest("[data-item]")?.dataset.item ?? last; settle(); });
  view.addEventListener("click", (event) => { const on = event.target.closest("[data-pick]"); if (on) pick(on.dataset.pick); });
  // Replace the content; focus and place in the scroll stay.
  return (...content) => {
    const held = view.contains(view.getRootNode().activeElement);
    const [top, left] = [view.scrollTop, view.scrollLeft];
    view.replaceChildren(...content);
    view.scrollTo(left, top);
    const stop = settle();
    if (held && stop?.dataset.item === last) stop.focus({ preventScroll: true });
  };
}

const clearer = (model, ...names) => h("button", { type: "button", class: "clear", onclick: () => {
  model.set("filters", {});
  for (const name of names) model.set(name, "");
  model.save_changes();
} }, "clear filters");

// --- the taxonomy -------------------------------------------------------------------------------------------------------------

function taxonomy(model, root) {
  const { dimensions, methods, lab } = model.get("data");
  const has = (m, name) => m.in[name];
  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  const chips = facets(model, dimensions, methods, has);
  const count = h("span", { class: "count", role: "status" });
  const input = h("input", { type: "search", placeholder: "name, author, title, idea …", "aria-label": "free text",
    oninput: () => put("text", input.value) });
  const clear = clearer(model, "text");
  const axis = (i) => h("select", { "aria-label": ["rows of the grid", "columns of the grid"][i], onchange: (event) => {
    const axes = [...model.get("axes")];
    if (axes[1 - i] === event.target.value) axes[1 - i] = axes[i]; // the same twice: they change places
    axes[i] = event.target.value;
    put("axes", axes);
  } }, dimensions.map((d) => h("option", { value: d.name }, d.title)));
  const axes = [axis(0), axis(1)];
  const view = h("div", { class: "scroll" });
  const card = h("article", { class: "card", tabindex: 0, "aria-label": "the chosen method" });
  root.append(
    h("div", { class: "bar" }, input, count, clear), chips.element,
    h("div", { class: "bar" }, h("label", {}, "rows ", axes[0]), h("label", {}, "columns ", axes[1]), pipelineLegend(), structureLegend()),
    h("div", { class: "two" }, view, card));
  const replace = arrows(view, (key) => { model.set("selected", key); model.save_changes(); });
  let carded = null;

  return () => {
    const wanted = model.get("text").toLowerCase().split(/\s+/).filter(Boolean);
    const texted = methods.filter((m) => wanted.every((w) => m.search.includes(w)));
    const found = passing(texted, model.get("filters"), has);
    if (input.value !== model.get("text")) input.value = model.get("text");
    chips.update(texted);
    count.textContent = `${found.length} of ${methods.length} methods`;
    clear.disabled = !wanted.length && !Object.keys(model.get("filters")).length;
    const [rows, columns] = model.get("axes").map((name) => dimensions.find((d) => d.name === name));
    axes.forEach((select, i) => (select.value = model.get("axes")[i]));
    replace(grid(methods, new Set(found), rows, columns, model.get("selected")));
    const shown = JSON.stringify(["selected", "opened", "problem"].map((name) => model.get(name)));
    if (shown !== carded) {
      carded = shown;
      card.replaceChildren(...cardOf(model, methods.find((m) => m.key === model.get("selected")), lab));
    }
  };
}

// Every method stays in its place; those that the filters leave out fade. The shade of a cell is the number that passes.
function grid(methods, found, rows, columns, selected) {
  const most = Math.max(1, ...rows.words.flatMap((r) => columns.words.map((c) =>
    methods.filter((m) => m.in[rows.name].includes(r.word) && m.in[columns.name].includes(c.word)).length)));
  const cell = (r, c) => {
    const here = methods.filter((m) => m.in[rows.name].includes(r.word) && m.in[columns.name].includes(c.word));
    const id = `${r.word}/${c.word}`, n = here.filter((m) => found.has(m)).length;
    const nobody = `${r.label} and ${c.label}: nobody has published this cell`;
    if (!here.length) return h("td", { class: "nobody", role: "gridcell" },
      h("span", { class: "empty", "data-item": id, "data-tip": nobody, "aria-label": nobody }, "nobody"));
    const shade = n && `background: color-mix(in srgb, #0072B2 ${Math.round(8 + 24 * n / most)}%, transparent)`;
    return h("td", { role: "gridcell", style: shade || null, "data-cell": id, "data-n": n }, here.map((m) =>
      h("button", { class: "name", type: "button", "data-item": `${id}/${m.key}`, "data-pick": m.key,
      "data-method": m.key, disabled: !found.has(m), "aria-pressed": m.key === selected, "data-tip": `${m.name}, ${m.year}\n${m.idea}` },
      glyph(m.in.structure.map((w) => SHAPES[w]), COLOURS[m.in.pipeline[0]]), h("span", {}, m.name))));
  };
  return h("table", { class: "grid", role: "grid", "aria-label":
    `Heat map: methods by ${rows.title} (rows) and ${columns.title} (columns); shaded by how many pass the filters` },
    h("thead", {}, h("tr", {}, h("td"), columns.words.map((c) => h("th", { scope: "col", "data-tip": c.text }, c.label)))),
    h("tbody", {}, rows.words.map((r) => h("tr", {},
      h("th", { scope: "row", "data-tip": r.text }, r.label), columns.words.map((c) => cell(r, c))))));
}

function cardOf(model, m, lab) {
  if (!m) return [h("h3", {}, "No method chosen"),
    h("p", {}, "Choose a name in the grid: what the method does, where sources disagree, what it reached.")];
  const link = (text, to) => to && h("a", { href: to, target: "_blank", rel: "noopener" }, text);
  const isStatic = model.get("static"), opened = model.get("opened") === m.key, problem = model.get("problem");
  const open = () => { // "" first: the same method may be opened again
    model.set("opened", ""); model.save_changes();
    model.set("opened", m.key); model.save_changes();
  };
  const here = m.here.presets.length ? `Runs here as the authors describe it: ${m.here.presets.join(", ")}.`
    : "No preset: its cell of the taxonomy runs here, not the method itself.";
  const said = !opened ? "" : lab ? "Opened in the lab." : "No lab was given to the explorer: paste the lines below.";
  return [
    h("h3", {}, m.name), h("p", {}, m.reference),
    m.bibliography !== "confirmed" && h("p", { class: "small" }, `bibliography: ${m.bibliography}`),
    h("p", {}, link("paper", m.paper), m.paper && m.code ? " · " : null, link("code", m.code), m.code ? null : " · no public code found"),
    h("p", {}, m.idea),
    h("h4", {}, "Stages"), h("dl", {}, m.stages.map(([stage, words]) => [h("dt", {}, stage), h("dd", {}, words.join(" + "))])),
    h("h4", {}, "In the lab"), h("p", {}, here),
    !isStatic && h("p", {}, h("button", { type: "button", class: "open", onclick: open }, "Open in the lab"), " ",
      h("span", { role: "status" }, said)),
    problem && h("p", { role: "alert" }, problem),
    isStatic && h("p", { class: "small" }, "This page has no kernel; in a notebook:"), h("pre", {}, m.here.code),
    h("h4", {}, "Published results"), results(m.results),
    h("h4", {}, m.readings.length ? `Where sources disagree (${m.readings.length})` : "Where sources disagree: nowhere"),
    ...m.readings.map((r) => h("details", {}, h("summary", {}, `${r.field}: ${r.scope}`),
      h("dl", {}, r.readings.map(([source, says]) => [h("dt", {}, source), h("dd", {}, says)]),
        h("dt", {}, "taken"), h("dd", {}, `${r.chosen}: ${r.reason}`)))),
    m.note && h("p", { class: "small" }, m.note),
  ].filter(Boolean);
}

function results(rows) {
  if (!rows.length) return h("p", {}, "None in the survey's leaderboard.");
  const tables = unique(rows.map((r) => r.structure_group)).map((group) => {
    const mine = rows.filter((r) => r.structure_group === group), levels = unique(mine.map((r) => r.sparsity)).sort();
    const value = (r) => (r ? `${r.robust.toFixed(1)} (${r.clean.toFixed(1)})` : "–");
    return h("table", { class: "rows" }, h("caption", {}, `${group}, robust (clean) in %: AutoAttack, eps 0.031, 10\u00a0000 images`),
      h("tr", {}, h("th"), levels.map((l) => h("th", { scope: "col", class: "number" }, percent(l)))),
      unique(mine.map((r) => `${r.data} ${r.network}`)).map((place) => h("tr", {}, h("th", { scope: "row" }, place), levels.map((l) =>
        h("td", { class: "number" }, value(mine.find((r) => `${r.data} ${r.network}` === place && r.sparsity === l)))))));
  });
  return h("div", { class: "scroll" }, tables);
}

const keys = (marks) => h("span", { class: "legend" }, marks.map(([word, mark]) => h("span", {}, mark, word)));
const pipelineLegend = () => keys(Object.entries(COLOURS).map(([word, colour]) => [word, glyph(["circle"], colour)]));
const structureLegend = () => keys(Object.entries(STRUCTURES).map(([word, shape]) => [word, glyph([shape], GREY)]));

// --- the leaderboard ----------------------------------------------------------------------------------------------------------

const VIEWS = { table: "Table", sparsity: "Robustness against sparsity", front: "Clean against robust", ranks: "Ranks" };
const HEADS = [["label", "method"], ["robust", "robust %"], ["clean", "clean %"], ["sparsity", "sparsity"], ["data", "data"],
  ["network", "network"], ["structure_group", "structure"], ["pipeline", "pipeline"], ["criterion", "criterion"]];

function leaderboard(model, root) {
  const { rows, dimensions, agreement, protocol, said } = model.get("data");
  const has = (row, name) => [row[name]];
  const name = (word) => said[word] ?? word;
  const put = (key, value) => { model.set(key, value); model.save_changes(); };
  const chips = facets(model, dimensions, rows, has);
  const count = h("span", { class: "count", role: "status" }), clear = clearer(model, "selected");
  const tabs = Object.entries(VIEWS).map(([key, title]) =>
    h("button", { type: "button", role: "tab", "data-view": key, onclick: () => put("view", key) }, title));
  const view = h("div", { class: "scroll view", role: "tabpanel", tabindex: -1 }), legend = h("div", { class: "legend keys" });
  const bar = h("div", { class: "bar", role: "tablist", "aria-label": "view", onkeydown: (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  } }, tabs);
  root.append(h("div", { class: "bar" }, count, clear, h("span", { class: "small" }, `published: ${protocol}`)), chips.element,
    bar, legend, view);
  const replace = arrows(view, (label) => put("selected", model.get("selected") === label ? "" : label));

  // What is under the pointer, or chosen, stands out: everything else with a name fades.
  const stress = (label) => {
    for (const e of view.querySelectorAll("[data-of]")) e.classList.toggle("off", Boolean(label) && e.dataset.of !== label);
  };
  view.addEventListener("mouseover", (event) => stress(event.target.closest("[data-of]")?.dataset.of ?? model.get("selected")));
  view.addEventListener("mouseleave", () => stress(model.get("selected")));
  view.addEventListener("focusin", (event) => stress(event.target.closest("[data-of]")?.dataset.of ?? model.get("selected")));

  return () => {
    const found = passing(rows, model.get("filters"), has), kind = model.get("view");
    chips.update(rows);
    count.textContent = `${found.length} of ${rows.length} results`;
    clear.disabled = !Object.keys(model.get("filters")).length && !model.get("selected");
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab.dataset.view === kind);
      tab.setAttribute("tabindex", tab.dataset.view === kind ? 0 : -1);
    }
    view.setAttribute("aria-label", VIEWS[kind]);
    legend.replaceChildren(...legendOf(kind, found));
    const width = (view.clientWidth || 700) - 16;
    if (!found.length) replace(h("p", {}, "Nothing passes these filters."));
    else if (kind === "table") replace(tableOf(found, model, name, put));
    else {
      const drawn = { sparsity: curves, front: fronts, ranks: bumps }[kind](found, width, name, agreement);
      replace(drawn.length ? h("div", { class: "panels" }, drawn) : h("p", {}, "Nothing to draw here: see the table."));
    }
    stress(model.get("selected"));
  };
}

function legendOf(kind, found) {
  const item = (mark, text) => h("span", {}, mark, text);
  const dash = (d) => s("svg", { width: 30, height: 8, "aria-hidden": "true" },
    s("path", { d: "M0,4H30", stroke: "currentColor", "stroke-width": 1.6, "stroke-dasharray": d }));
  if (kind === "table")
    return [h("span", {}, "bold: on the clean-robust front of its column; † not comparable with published rows, see the last column")];
  const marks = [...Object.entries(COLOURS).map(([word, colour]) => item(glyph(["circle"], colour), word))];
  if (kind !== "ranks") marks.push(item(glyph(["circle"], GREY), "single weights"), item(glyph(["square"], GREY), "filters or channels"));
  const criteria = Object.keys(DASHES).filter((c) => found.some((r) => r.criterion === c));
  const untold = found.filter((r) => r.sparsity === null).length;
  if (kind === "sparsity" && untold) marks.push(h("span", {}, `${untold} without a sparsity: in the table only`));
  if (kind === "sparsity") marks.push(...criteria.map((c) => item(dash(DASHES[c]), c.toUpperCase())));
  if (kind === "front") marks.push(item(dash("4 3"), "front: nothing published is better in both"));
  if (kind === "ranks")
    marks.push(h("span", {}, "1 = best robust accuracy among the methods shown; ρ: Spearman, over all methods that both columns have"));
  else if (found.some((r) => r.mine)) marks.push(h("span", {}, "bars: 95 % interval; hollow and †: not comparable"));
  return marks;
}

const levelsOf = (rows) => unique(rows.map((r) => r.sparsity)).filter((l) => l !== null).sort((a, b) => a - b);
const colourOf = (row) => COLOURS[row.pipeline] ?? GREY;
const told = (row, name) => [`${row.label}${row.mine ? ` (${row.source === "run" ? "my run" : "my network"})` : ""}`,
  `${name(row.data)}, ${name(row.network)}, ${row.structure_group || "structure not told"}, sparsity ${percent(row.sparsity)}`,
  `robust ${row.robust.toFixed(2)} % [${row.low.toFixed(1)}, ${row.high.toFixed(1)}], clean ${row.clean.toFixed(2)} %`, row.how,
  row.comparable ? "" : `not comparable: ${row.why}`,
  row.front ? "on the clean-robust front of its column" : ""].filter(Boolean).join("\n");

function tableOf(found, model, name, put) {
  const [by, order] = model.get("sort"), sign = order === "asc" ? 1 : -1;
  const numeric = (column) => ["sparsity", "clean", "robust"].includes(column);
  const compare = (a, b) => (numeric(by) ? a[by] - b[by] : String(a[by]).localeCompare(String(b[by])));
  // What is not comparable comes last, however it is sorted.
  const sorted = [...found].sort((a, b) => b.comparable - a.comparable || sign * compare(a, b) || a.label.localeCompare(b.label));
  const turn = (column) => put("sort", [column, (column === by ? sign > 0 : numeric(column)) ? "desc" : "asc"]);
  const head = ([column, title]) => h("th", { scope: "col", class: numeric(column) && "number",
    "aria-sort": column === by ? (sign > 0 ? "ascending" : "descending") : "none" },
    h("button", { type: "button", "data-item": `head/${column}`, "data-sort": column, onclick: () => turn(column),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") turn(column); } },
    title, " ", h("span", { "aria-hidden": "true" }, column === by ? (sign > 0 ? "▲" : "▼") : "\u2002")));
  const number = (content) => h("td", { class: "number" }, content);
  const robust = (r) => r.robust.toFixed(2) + (r.mine ? ` [${r.low.toFixed(0)}, ${r.high.toFixed(0)}]` : "") + (r.comparable ? "" : " †");
  const words = (r) => [name(r.data), name(r.network), r.structure_group, r.pipeline, (r.criterion ?? "").toUpperCase()];
  const mark = (r) => glyph([SHAPES[r.structure_group] ?? "circle"], r.comparable ? colourOf(r) : "none", { stroke: colourOf(r) });
  const line = (r) => h("tr", { class: r.label === model.get("selected") && "chosen", "data-row": r.id },
    h("th", { scope: "row" }, h("button", { class: "name", type: "button", "data-item": r.id, "data-pick": r.label,
      "data-tip": told(r, name) }, mark(r), h("span", {}, r.label))),
    number(r.front ? h("b", {}, robust(r)) : robust(r)), number(r.clean.toFixed(2)), number(percent(r.sparsity)),
    words(r).map((word) => h("td", {}, word)), h("td", {}, r.comparable ? r.how : `${r.how} († ${r.why})`));
  return h("table", { class: "rows", "aria-label": "results, one row each" },
    h("thead", {}, h("tr", {}, HEADS.map(head), h("th", { scope: "col" }, h("span", { style: "padding: 0 6px" }, "how")))),
    h("tbody", {}, sorted.map(line)));
}

// --- figures --------------------------------------------------------------------------------------------------------------------

// Small multiples: one panel for each value of `key`, as many beside each other as fit.
function panels(rows, key, width, least, draw) {
  const order = (r) => [r.data, ["unstructured", "structured", ""].indexOf(r.structure_group), r.network, String(r.sparsity)].join();
  const groups = grouped([...rows].sort((a, b) => (order(a) < order(b) ? -1 : 1)), key);
  const across = Math.max(1, Math.min(groups.length, Math.floor(width / least)));
  const w = Math.floor(width / across) - 8, tall = groups.length <= across;
  return groups.map(([title, group]) => draw(title, group, w, tall ? 440 : 250));
}
const place = (name) => (r) => [name(r.data), name(r.network) || "network not told", r.structure_group || "structure not told"].join(", ");

function figure(title, description, w, height, ...content) {
  return h("figure", { style: `width: ${w}px` }, h("figcaption", {}, title),
    s("svg", { width: w, height, role: "group", "aria-label": `${title}. ${description}` }, s("desc", {}, description), content));
}

function scale(values, from, to, pad = 0.06) {
  const [low, high] = [Math.min(...values), Math.max(...values)], more = Math.max((high - low) * pad, 2 - (high - low) / 2);
  return { at: (v) => from + ((v - low + more) / (high - low + 2 * more || 1)) * (to - from), low: low - more, high: high + more };
}

function ticks({ low, high }, n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((k) => k * power >= rough);
  return Array.from({ length: 50 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((v) => v <= high);
}

const across = (x, y, text, anchor = "middle", more = {}) => s("text", { x, y, "text-anchor": anchor, ...more }, text);
function label(x, y, row, anchor, style = "") {
  const text = (row.label.length > 14 ? `${row.label.slice(0, 13)}…` : row.label) + (row.comparable ? "" : " †");
  return across(x, y, text, anchor, { "data-of": row.label,
    style: `fill: color-mix(in srgb, ${colourOf(row)} 70%, currentColor); ${style}` });
}

// Labels that overlap push each other apart, within the panel.
function spread(labels, bottom, gap = 11.5) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  for (let round = 0; round < 60; round++) {
    sorted.forEach((l, i) => {
      const over = i ? sorted[i - 1].y + gap - l.y : 0;
      if (over > 0) [sorted[i - 1].y, l.y] = [sorted[i - 1].y - over / 2, l.y + over / 2];
      l.y = Math.min(Math.max(l.y, 10), bottom);
    });
  }
  return labels;
}

function mark(row, x, y, r, name, extra = []) {
  const colour = colourOf(row), tip = told(row, name);
  return s("g", { class: "mark", role: "img", "aria-label": tip.replaceAll("\n", "; "), "data-tip": tip,
    "data-item": row.id, "data-pick": row.label, "data-of": row.label },
    extra, s("path", { d: outline("circle", x, y, 9), fill: "transparent" }), // easier to hit
    s("path", { d: outline(SHAPES[row.structure_group] ?? "circle", x, y, r), "stroke-width": 1.3,
      fill: row.comparable ? colour : "transparent", stroke: row.mine ? "currentColor" : colour }));
}
const interval = (row, x, y) => s("path", { d: `M${x},${y.at(row.low)}V${y.at(row.high)}`, stroke: colourOf(row), "stroke-width": 1.6 });

function frame(w, height, y, right, labelX, labelY, xTicks) {
  return [
    ...ticks(y, height > 300 ? 8 : 5).map((v) =>
      [s("path", { class: "axis", d: `M38,${y.at(v)}H${w - right}` }), across(34, y.at(v) + 4, +v.toFixed(2), "end")]).flat(),
    ...xTicks.map(([at, text]) => [s("path", { class: "axis", d: `M${at},${height - 34}v5` }), across(at, height - 18, text)]).flat(),
    s("path", { class: "axis", d: `M38,8V${height - 34}H${w - right}`, style: "stroke: currentColor; stroke-opacity: .6" }),
    across((38 + w - right) / 2, height - 4, labelX),
    across(10, (height - 34) / 2, labelY, "middle", { transform: `rotate(-90 10 ${(height - 34) / 2})` }),
  ];
}

function curves(rows, width, name) {
  const drawn = rows.filter((r) => r.sparsity !== null);
  const all = drawn.flatMap((r) => (r.mine ? [r.low, r.high] : [r.robust]));
  return panels(drawn, place(name), width, 290, (title, group, w, height) => {
    const levels = levelsOf(group), y = scale(all, height - 40, 14);
    const x = (l) => 56 + (levels.length > 1 ? (levels.indexOf(l) / (levels.length - 1)) * (w - 38 - 118) : (w - 156) / 2);
    const lines = grouped(group, (r) => `${r.source}/${r.label}`).map(([, line]) => line);
    const labels = lines.map((line) => {
      line.sort((a, b) => a.sparsity - b.sparsity);
      return { row: line.at(-1), y: y.at(line.at(-1).robust) + 4, x: x(line.at(-1).sparsity) };
    });
    return figure(title, `Robust accuracy against sparsity; ${lines.length} lines.`, w, height,
      frame(w, height, y, 92, "sparsity", "robust %", levels.map((l) => [x(l), percent(l)])),
      lines.map((line) => s("path", { "data-of": line[0].label, fill: "none", stroke: colourOf(line[0]), "stroke-width": 1.7,
        "stroke-dasharray": DASHES[line[0].criterion] ?? "",
        d: line.map((r, i) => `${i ? "L" : "M"}${x(r.sparsity)},${y.at(r.robust)}`).join("") })),
      group.map((r) => mark(r, x(r.sparsity), y.at(r.robust), r.mine ? 4.5 : 3.2, name, r.mine ? [interval(r, x(r.sparsity), y)] : [])),
      spread(labels, height - 38).map((l) => label(w - 86, l.y, l.row, "start")));
  });
}

// One panel a column of the published tables, since fronts do not reach across columns; each has scales of its own.
function fronts(rows, width, name) {
  const column = (r) => `${place(name)(r)}, ${percent(r.sparsity)}`;
  return panels(rows, column, width, 285, (title, group, w, height) => {
    const x = scale(group.map((r) => r.clean), 56, w - 88);
    const y = scale(group.flatMap((r) => (r.mine ? [r.low, r.high] : [r.robust])), height - 46, 16);
    const front = group.filter((r) => r.front).sort((a, b) => a.clean - b.clean);
    // Nothing published lies above and to the right of a point on the front: that is where its label goes.
    const labels = group.filter((r) => r.front || r.mine || height > 300).map((r) =>
      ({ row: r, x: x.at(r.clean) + 6, y: y.at(r.robust) + (r.front ? -8 : 13) }));
    const best = front.map((r) => r.label).join(", ") || "nothing published";
    return figure(title, `Clean accuracy to the right, robust upwards; on the front: ${best}.`, w, height,
      frame(w, height, y, 12, "clean %", "robust %", ticks(x, w > 420 ? 8 : 5).map((v) => [x.at(v), +v.toFixed(2)])),
      s("path", { class: "front", d: front.map((r, i) => `${i ? "L" : "M"}${x.at(r.clean)},${y.at(r.robust)}`).join("") }),
      group.map((r) => mark(r, x.at(r.clean), y.at(r.robust), 4, name, r.mine ? [interval(r, x.at(r.clean), y)] : [])),
      spread(labels, height - 42).map((l) => label(l.x, l.y, l.row, "start", l.row.front ? "font-weight: 600" : "")));
  });
}

// Columns whose neighbours differ in one thing only, so that one correlation stands between two of them.
const STOPS = [["cifar10", "resnet18"], ["cifar10", "vgg16"], ["svhn", "vgg16"], ["svhn", "resnet18"]];

function bumps(rows, width, name, agreement) {
  const title = (r) => `${r.structure_group}, ${percent(r.sparsity)}`;
  return panels(rows.filter((r) => !r.mine), title, width, 400, (title, group, w) => {
    const stops = STOPS.map(([data, network]) => ({ data, network, rows: group.filter((r) => r.data === data && r.network === network) }))
      .filter((stop) => stop.rows.length);
    for (const stop of stops) stop.rows.sort((a, b) => b.robust - a.robust);
    const methods = unique(stops.flatMap((stop) => stop.rows.map((r) => r.label)));
    const at = (i, m) => stops[i].rows.findIndex((r) => r.label === m);
    const tall = 64 + 21 * Math.max(...stops.map((stop) => stop.rows.length)), end = stops.length - 1;
    const x = (i) => 84 + (end ? i / end : 0.5) * (w - 168), y = (k) => 60 + 21 * k;
    const between = (p, q) => agreement.find((a) => a.structure_group === group[0].structure_group && a.sparsity === group[0].sparsity
      && (a.between === "data" ? p.data !== q.data && p.network === q.network && a.network === p.network
        : p.network !== q.network && p.data === q.data && a.data === p.data));
    const spearman = stops.slice(1).map((q, i) => {
      const a = between(stops[i], q), rho = a?.spearman;
      return a && across((x(i) + x(i + 1)) / 2, 40, `ρ ${rho === null ? "?" : rho.toFixed(2)} (${a.methods})`, "middle", {
        style: "font-weight: 600", "data-tip": `Spearman's correlation over the ${a.methods} methods that both columns have` });
    });
    const way = (m) => stops.slice(1).map((_, i) => [at(i, m), at(i + 1, m)].includes(-1) ? ""
      : `M${x(i)},${y(at(i, m))}L${x(i + 1)},${y(at(i + 1, m))}`).join("");
    const side = (i, dx, anchor) => stops[i].rows.map((r, k) =>
      across(x(i) + dx, y(k) + 4, `${k + 1} ${r.label}`, anchor, { "data-of": r.label }));
    return figure(title, `Places of ${methods.length} methods in ${stops.length} columns, the best on top.`, w, tall,
      stops.map((p, i) => [across(x(i), 13, name(p.data)), across(x(i), 26, name(p.network))]), spearman.filter(Boolean),
      methods.map((m) => s("path", { "data-of": m, fill: "none", stroke: colourOf(group.find((r) => r.label === m)), "stroke-width": 2,
        d: way(m) })),
      stops.map((p, i) => p.rows.map((r, k) => mark(r, x(i), y(k), 4, name))),
      side(0, -10, "end"), end ? side(end, 10, "start") : []);
  });
}

// --- one entry -----------------------------------------------------------------------------------------------------------------

export default {
  render({ model, el }) {
    // The attribute keeps JupyterLab's one-letter commands away from what is typed here.
    const host = h("div", { "data-lm-suppress-shortcuts": "true", class: "apnb-explorer" });
    el.append(host);
    const root = h("div", { class: "root" });
    host.attachShadow({ mode: "open" }).append(h("style", {}, CSS), root);
    const draw = { taxonomy, leaderboard }[model.get("kind")](model, root);
    const hide = tooltips(root);
    let due = false;
    const changed = () => { // several traits may change at once: one redraw
      if (due) return;
      due = true;
      queueMicrotask(() => { due = false; hide(); draw(); });
    };
    const names = ["filters", "text", "axes", "selected", "opened", "problem", "view", "sort"];
    for (const name of names) model.on(`change:${name}`, changed);
    let width = 0;
    const observer = new ResizeObserver(() => { if (root.clientWidth !== width) { width = root.clientWidth; changed(); } });
    observer.observe(root);
    draw();
    return () => { observer.disconnect(); for (const name of names) model.off(`change:${name}`, changed); };
  },
};
