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
    const { data, layout, frames } = JSON.parse(figure.querySelector("script").textContent);
    const live = figure.querySelector(".live");
    // A finger that scrolls the page must not zoom the figure.
    const finger = matchMedia("(pointer: coarse)").matches, drag = finger ? { dragmode: false } : {};
    figure.classList.add("drawn");
    fit(live, layout);
    await Plotly.newPlot(live, { data, frames, layout: { ...layout, ...drag },
      config: { responsive: true, displaylogo: false, displayModeBar: finger ? false : "hover" } });
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

  // A figure is as wide as its place, but panels side by side need room: then the place scrolls.
  function fit(live, layout) {
    const axes = Object.entries(layout).filter(([name]) => /^xaxis\d*$/.test(name));
    const columns = new Set(axes.map(([, axis]) => axis.domain?.[0] ?? 0)).size;
    live.style.minWidth = `${layout.width ?? (columns > 1 ? Math.max(480, 230 * columns) : 300)}px`;
    const margin = { ...layout.template?.layout?.margin, ...layout.margin };
    const room = Math.max(live.parentElement.clientWidth, parseInt(live.style.minWidth)) - (margin.l ?? 80) - (margin.r ?? 80);
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
      const { method, args } = steps[to];
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
