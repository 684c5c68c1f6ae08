// Figures are drawn when they come near, and moved with the keyboard as well; the contents say where the reader is. No module, since
// a browser loads none from a file on disk.
(() => {
  "use strict";
  let library;
  const plotly = () => library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "assets/plotly.min.js";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.min.js is missing"));
    document.head.append(script);
  });

  async function draw(figure) {
    const Plotly = await plotly();
    const read = () => JSON.parse(figure.querySelector("script").textContent);
    const { data, layout, frames } = read();
    const live = figure.querySelector(".live");
    // A finger that scrolls the page must not zoom the figure.
    const finger = matchMedia("(pointer: coarse)").matches, drag = finger ? { dragmode: false } : {};
    figure.classList.add("drawn");
    const first = fit(live, data, layout);
    await Plotly.newPlot(live, { data, frames, layout: { ...layout, ...drag },
      config: { responsive: true, displaylogo: false, displayModeBar: finger ? false : "hover" } });
    settle(Plotly, live, read, first);
    if (layout.sliders?.length) slider(Plotly, live, layout.sliders[0]);
    else live.setAttribute("role", "img");
  }

  // Text of a figure does not break by itself: here it does, between words, and the figure grows by the lines that come.
  function lines(text, letters) {
    if (!text || /<(?!br|\/?[bi]>)/.test(text)) return text;
    return text.split(/<br\s*\/?>/).flatMap((line) => line.split(" ").reduce((all, word) => {
      const last = all.at(-1);
      return last && last.length + 1 + word.length > letters ? [...all, word] : [...all.slice(0, -1), last ? `${last} ${word}` : word];
    }, [""])).join("<br>");
  }

  // A figure is as wide as its place, but panels side by side need room, and some figures ask for it: then the place scrolls.
  // Wide labels of an axis take ``lost`` of the room. Returns the measures to start from.
  function fit(live, data, layout, lost = 0) {
    const axes = Object.entries(layout).filter(([name]) => /^xaxis\d*$/.test(name));
    const columns = new Set(axes.map(([, axis]) => axis.domain?.[0] ?? 0)).size;
    const least = Math.max(columns > 1 ? Math.max(480, 230 * columns) : 300, layout.meta?.least_width ?? 0);
    live.style.minWidth = `${layout.width ?? least}px`;
    const margin = { ...layout.template?.layout?.margin, ...layout.margin };
    const sides = (margin.l ?? 80) + (margin.r ?? 80) + lost;
    const room = Math.max(live.parentElement.clientWidth, parseInt(live.style.minWidth)) - sides;
    for (const trace of data) if (trace.name) trace.name = lines(trace.name, (room + (margin.r ?? 80) - 45) / 6.6);
    let more = 0;
    const steps = (layout.sliders ?? []).flatMap((slider) => slider.steps.map((step) => step.args?.[1]));
    for (const place of [layout, ...steps]) {
      if (typeof place?.title !== "object") continue;
      const { title } = place, before = `${title.text}${title.subtitle?.text}`.split("<br>").length;
      title.text = lines(title.text, room / 7.9);
      if (title.subtitle) title.subtitle.text = lines(title.subtitle.text, room / 5.9);
      more = Math.max(more, 17 * (`${title.text}${title.subtitle?.text}`.split("<br>").length - before));
    }
    layout.margin = { ...layout.margin, t: (margin.t ?? 100) + more };
    layout.height = (layout.height ?? 450) + more;
    return { height: layout.height, t: layout.margin.t, b: margin.b ?? 80, r: margin.r ?? 80, sides, y: layout.legend?.y ?? 1,
      pad: layout.sliders?.[0].pad?.t ?? 0 };
  }

  // What a narrow place pushes over each other (ticks and title of the x axis, a legend below them, the slider) is moved apart, and the
  // figure grows by that; text cut at the right gets a margin. Again after each step and at each width; at one width nothing moves back.
  function settle(Plotly, live, read, start) {
    const boxes = (selector) => [...live.querySelectorAll(selector)].map((e) => e.getBoundingClientRect()).filter((b) => b.width);
    const hit = (some, others) => some.some((a) => others.some((b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1));
    const most = (all, side) => Math.max(...all.map((b) => b[side]));
    let { top, pad, b, r } = {}, moved = false, busy = false, lost = 0, width = live.parentElement.clientWidth;
    const free = live.layout.width ? {} : { autosize: true, width: null }; // a new height would fix the width
    const reset = () => { top = 0; ({ pad, b, r } = start); };

    // The change of the layout that is needed, or null.
    function change() {
      const { _size: size, legend, margin, height, sliders } = live._fullLayout;
      const [svg] = boxes(".main-svg"), ground = svg.top + size.t + size.h;
      const axis = boxes("[class^=xaxislayer] text, [class^=g-x] text"), [bar] = boxes(".slider-group");
      const below = start.y < 0, names = below ? boxes(".legendtext") : [], [frame] = below ? boxes(".legend > .bg") : [];
      const cut = most([svg, ...axis, ...boxes(".annotation text, .slider-group")], "right") - svg.right;
      if (cut > 1) r = Math.max(r, Math.min(size.r + cut + 2, start.r + 60));
      const room = start.height - start.t - start.b;
      moved ||= hit(names, axis) || (bar && hit([bar], [...names, ...axis])) || most([svg, ...names], "bottom") > svg.bottom
        || (frame && room - size.h > 20);
      if (!moved && margin.r === r) return null;
      if (moved) {
        let end = most([{ bottom: ground }, ...axis], "bottom") - ground + 4;
        if (frame) {
          top = Math.max(top, -start.y * room, end);
          end = top + frame.height + 4;
        }
        if (bar) {
          pad = Math.max(pad, end - (bar.top - ground - sliders[0].pad.t));
          b = start.b + pad - start.pad;
        } else if (frame) b = Math.max(b, end + 8);
      }
      const to = { ...free, "margin.t": start.t, "margin.b": b, "margin.r": r, height: start.height + b - start.b };
      if (frame) to["legend.y"] = moved ? -top / room : start.y;
      if (bar) to["sliders[0].pad.t"] = pad;
      const now = [margin.b, margin.r, height, ...(frame ? [legend.y * room] : [])];
      const then = [b, r, to.height, ...(frame ? [to["legend.y"] * room] : [])];
      return now.some((value, i) => Math.abs(value - then[i]) > 1) ? to : null;
    }

    // Another width, or labels of an axis that take room, break lines elsewhere.
    async function refit() {
      const { _size: size } = live._fullLayout, [svg] = boxes(".main-svg"), turned = width !== live.parentElement.clientWidth;
      const cut = most([svg, ...boxes(".g-gtitle text, .legendtext")], "right") - svg.right > 1;
      const taken = size.l + size.r - start.sides;
      if (!turned && (!cut || taken < 1)) return;
      width = live.parentElement.clientWidth;
      lost = turned ? 0 : lost + taken;
      const { data, layout } = read();
      start = fit(live, data, layout, lost);
      if (turned) reset();
      const steps = layout.sliders?.[0].steps, active = live._fullLayout.sliders?.[0]?.active ?? 0;
      const title = steps?.[active].args[1]?.title ?? layout.title;
      if (title?.text === live.layout.title?.text && data.every((trace, i) => trace.name === live.data[i].name)) return;
      const whole = { ...free, title, "margin.t": start.t, height: start.height + live._fullLayout.margin.b - start.b };
      if (steps) whole["sliders[0].steps"] = steps;
      await Plotly.update(live, { name: data.map((trace) => trace.name) }, whole);
    }

    async function again() {
      if (busy || !live.clientWidth) return; // on paper it is hidden
      busy = true;
      try {
        await refit();
        for (let turn = 0, to; turn < 3 && (to = change()); turn++) await Plotly.relayout(live, to);
      } finally { busy = false; }
    }
    reset();
    again();
    live.on("plotly_afterplot", again);
  }

  // The figure's own slider answers to the mouse only: here are the arrow keys, and what a screen reader says.
  function slider(Plotly, live, { steps, active = 0, currentvalue }) {
    const tell = () => {
      live.setAttribute("aria-valuenow", active);
      live.setAttribute("aria-valuetext", (currentvalue?.prefix ?? "") + steps[active].label);
    };
    const attributes = { tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": steps.length - 1 };
    for (const [name, value] of Object.entries(attributes)) live.setAttribute(name, value);
    tell();
    live.on("plotly_sliderchange", ({ slider: moved }) => { active = moved.active; tell(); });
    live.addEventListener("keydown", async (event) => {
      const to = { ArrowLeft: active - 1, ArrowDown: active - 1, ArrowRight: active + 1, ArrowUp: active + 1, Home: 0,
        End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      if (!steps[to] || to === active) return;
      active = to;
      tell();
      const { method, args } = live.layout.sliders[0].steps[to]; // as they are broken now
      if (method && method !== "skip") await Plotly[method](live, ...args);
      await Plotly.relayout(live, { "sliders[0].active": to });
    });
  }

  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target).catch((error) => { target.classList.remove("drawn"); console.error(error); });
    }
  }, { rootMargin: "700px" });
  for (const figure of document.querySelectorAll(".plot")) near.observe(figure);

  const contents = document.getElementById("contents");
  const links = new Map([...contents.querySelectorAll(".sections a")].map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const headings = [...document.querySelectorAll("main [id]")].filter((h) => links.has(h.id));
  let due = false;
  const where = () => {
    due = false;
    const passed = headings.filter((h) => h.getBoundingClientRect().top < innerHeight / 4).at(-1);
    for (const [id, a] of links) {
      if (id === passed?.id) a.setAttribute("aria-current", "location");
      else a.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", () => { if (!due) { due = true; requestAnimationFrame(where); } }, { passive: true });
  where();
  contents.addEventListener("click", (event) => {
    if (event.target.closest("a") && contents.matches(":popover-open")) contents.hidePopover();
  });

  for (const box of document.querySelectorAll(".formula, .table, main pre")) { // what scrolls can be scrolled with keys
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const fold of folded) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });
})();
