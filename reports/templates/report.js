"use strict";
(async () => {
  const root = document.documentElement;
  const charts = [...document.querySelectorAll(".chart")];
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;

  // -- theme: the system's unless chosen; storage may be closed to a file from a mail -------------------------------
  const button = document.getElementById("theme");
  const theme = () => root.dataset.theme || (systemDark.matches ? "dark" : "light");
  const other = () => (theme() === "dark" ? "light" : "dark");
  const label = () => {
    button.textContent = other() === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Switch to the ${other()} theme`);
  };
  label();
  button.hidden = false;

  const say = (text) => {
    const notice = document.getElementById("notice");
    notice.textContent = text;
    notice.hidden = false;
    charts.forEach((chart) => { chart.style.display = "none"; });
    document.querySelectorAll("select.view").forEach((select) => { select.style.display = "none"; });
  };

  // -- drawing: figures name colours as CSS variables ------------------------------------------------------------------
  const resolved = (value, style) => {
    if (typeof value === "string") return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    if (Array.isArray(value)) return value.map((item) => resolved(item, style));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, style)]));
    return value;
  };
  const shown = {};
  const hidden = {};
  const draw = (chart) => {
    const key = chart.dataset.chart;
    const figure = resolved(figures[key][shown[key] || 0], getComputedStyle(root));
    const layout = figure.layout;
    const narrow = chart.clientWidth < 520;
    if (layout.height) chart.style.height = `${layout.height}px`;
    layout.autosize = true;
    layout.dragmode = touch ? false : "zoom";
    if (narrow) {
      layout.margin = { ...layout.margin, l: 2, r: layout.margin.r > 40 ? layout.margin.r : 6 };
      for (const [name, axis] of Object.entries(layout)) if (/^[xy]axis/.test(name)) axis.title.font.size = 10.5;
      for (const trace of figure.data) {
        const bar = trace.marker && trace.marker.colorbar;
        if (bar) Object.assign(bar, { orientation: "h", y: -0.2, yanchor: "top", x: 0.5, len: 1, thickness: 8, title: { ...bar.title, side: "bottom" } });
      }
    }
    for (const trace of figure.data) if (hidden[key] && hidden[key].has(trace.name)) trace.visible = false;
    chart.drawnAt = chart.clientWidth;
    legend(chart, figure.data);
    return Plotly.react(chart, figure.data, layout, { displayModeBar: false, displaylogo: false, doubleClick: "reset" });
  };

  // -- legends: plotly's own take the room of the plot on a phone -------------------------------------------------------
  const shapes = {
    circle: '<circle cx="9" cy="6" r="4.5"/>',
    diamond: '<path d="M9 1l5 5-5 5-5-5z"/>',
    "line-ns": '<path d="M9 0v12"/>',
    square: '<rect x="4" y="1" width="10" height="10" rx="2"/>',
    line: '<path d="M0 6h18"/>',
  };
  const swatch = (trace) => {
    const marker = trace.marker || {};
    const lines = (trace.mode || "").includes("lines");
    const symbol = Array.isArray(marker.symbol) ? marker.symbol[0] : marker.symbol || "circle";
    const shape = trace.type === "bar" ? "square" : lines ? "line" : symbol.replace("-open", "");
    const open = shape === "line" || shape === "line-ns" || symbol.endsWith("-open");
    let color = lines ? trace.line.color : marker.color;
    if (Array.isArray(color)) color = getComputedStyle(root).getPropertyValue("--scale-2").trim();
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 18 12");
    svg.setAttribute("aria-hidden", "true");
    svg.innerHTML = shapes[shape] || shapes.circle;
    svg.style.cssText = `fill:${open ? "none" : color};stroke:${color};stroke-width:${open ? 2 : 0};opacity:${marker.opacity || 1}`;
    if (lines && trace.line.dash && trace.line.dash !== "solid") svg.style.strokeDasharray = trace.line.dash === "dot" ? "2 3" : "6 4";
    return svg;
  };
  const legend = (chart, traces) => {
    const key = chart.dataset.chart;
    const place = document.querySelector(`[data-legend="${key}"]`);
    const named = traces.filter((trace) => trace.name && trace.showlegend !== false);
    place.replaceChildren(...(named.length < 2 ? [] : named).map((trace) => {
      const entry = document.createElement("button");
      const text = document.createElement("span");
      const decode = document.createElement("textarea");  // names carry entities, which plotly reads as it does here
      decode.innerHTML = trace.name;
      text.textContent = decode.value;
      entry.type = "button";
      entry.setAttribute("aria-pressed", String(trace.visible !== false));
      entry.append(swatch(trace), text);
      entry.addEventListener("click", () => {
        const off = (hidden[key] ||= new Set());
        if (!off.delete(trace.name)) off.add(trace.name);
        drawSafely(chart);
      });
      return entry;
    }));
  };
  const drawSafely = async (chart) => {
    try {
      await draw(chart);
    } catch (error) {
      chart.innerHTML = '<p class="failed">This chart could not be drawn; its numbers are in the table below.</p>';
      console.error(chart.dataset.chart, error);
    }
  };
  const drawAll = () => Promise.all(charts.map(drawSafely));

  button.addEventListener("click", () => {
    root.dataset.theme = other();
    try { localStorage.setItem("archsearch-theme", root.dataset.theme); } catch { /* then it lasts until the page is closed */ }
    label();
    if (window.Plotly) drawAll();
  });
  systemDark.addEventListener("change", () => { label(); if (window.Plotly) drawAll(); });

  // -- plotly.js, inflated here ------------------------------------------------------------------------------------------
  if (typeof DecompressionStream === "undefined") {
    say("This browser is too old to unpack the charts. The numbers of every chart are in the tables below it.");
    root.dataset.drawn = "none";
    return;
  }
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const library = document.createElement("script");
    library.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(library);
  } catch (error) {
    say("The charts could not be unpacked. The numbers of every chart are in the tables below it.");
    root.dataset.drawn = "none";
    console.error(error);
    return;
  }
  for (const chart of charts) {
    await drawSafely(chart);
    await new Promise((done) => setTimeout(done));
  }

  document.querySelectorAll("select.view").forEach((select) => {
    select.value = "0";
    select.addEventListener("change", () => {
      shown[select.dataset.for] = Number(select.value);
      drawSafely(charts.find((chart) => chart.dataset.chart === select.dataset.for));
    });
  });
  let waiting = 0;
  const changed = new ResizeObserver((entries) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => charts.filter((chart) => chart.clientWidth && chart.clientWidth !== chart.drawnAt).forEach(drawSafely), 120);
  });
  charts.forEach((chart) => changed.observe(chart));
  // Charts are drawn before the page is laid out for paper, so it has to look like paper by then: its width, its one column, light.
  let screenTheme;
  addEventListener("beforeprint", () => {
    screenTheme = root.dataset.theme;
    root.dataset.theme = "light";
    root.dataset.printing = "";
    charts.forEach(drawSafely);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.printing;
    if (screenTheme) root.dataset.theme = screenTheme;
    else delete root.dataset.theme;
    charts.forEach(drawSafely);
  });
  root.dataset.drawn = "all";
})();
