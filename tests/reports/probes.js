// Looks at an open report from within. Every function but drawn() returns a list of what is wrong, in words.
"use strict";
window.probes = (() => {
  const overlap = (a, b, slack) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > slack;
  const pairs = (items) => items.flatMap((a, at) => items.slice(at + 1).map((b) => [a, b]));
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // What each chart consists of, in pixels and traces.
  const drawn = () => all(".chart").map((chart) => {
    const size = (element) => (element ? element.getBoundingClientRect() : { width: 0, height: 0 });
    const svg = size(chart.querySelector("svg.main-svg"));
    const plot = size(chart.querySelector(".nsewdrag"));
    return {
      key: chart.dataset.chart,
      failed: !!chart.querySelector(".failed"),
      svg: !!chart.querySelector("svg.main-svg"),
      width: svg.width,
      height: svg.height,
      plotWidth: plot.width,
      plotHeight: plot.height,
      traces: all(".trace", chart).length,
      expected: JSON.parse(document.getElementById("figures").textContent)[chart.dataset.chart][0].data.length,
      empty: all(".trace", chart).filter((trace) => !trace.querySelector("path")).length,
      room: chart.getBoundingClientRect().width,
    };
  });

  // Elements that leave the page, text that spills out of its box or is cut off; what may scroll is left out.
  const outside = () => {
    const wrong = [];
    const page = document.documentElement;
    if (page.scrollWidth > page.clientWidth) wrong.push(`page: ${page.scrollWidth} > ${page.clientWidth}`);
    for (const element of all("main *")) {
      if (element.closest(".chart, .scroll, pre.command, select, svg, noscript")) continue;
      const box = element.getBoundingClientRect();
      const name = `${element.tagName}.${element.className}`;
      if (box.width && (box.right > page.clientWidth + 0.5 || box.left < -0.5)) wrong.push(`${name} leaves the page`);
      const text = element.children.length ? "" : element.textContent.trim();
      if (text && element.clientWidth && element.scrollWidth > element.clientWidth + 1) wrong.push(`${name} cuts "${text.slice(0, 40)}"`);
    }
    return wrong;
  };

  const overlapping = () => {
    const wrong = [];
    for (const group of all(".cells, .cards, .grid, .legend")) {
      for (const [a, b] of pairs([...group.children].map((child) => child.getBoundingClientRect()))) {
        if (overlap(a, b, 0.5)) wrong.push(`overlap in ${group.className}`);
      }
    }
    for (const cell of all(".cell")) {
      const text = document.createRange();
      text.selectNodeContents(cell);
      const inner = text.getBoundingClientRect(), outer = cell.getBoundingClientRect();
      if (inner.width > outer.width + 0.5 || inner.height > outer.height + 0.5) wrong.push(`a cell is too small for ${cell.textContent}`);
      if (parseFloat(getComputedStyle(cell).fontSize) < 9) wrong.push(`a label of less than 9 px: ${cell.textContent}`);
    }
    return wrong;
  };

  // Texts of a chart that leave it, ticks of one axis that overlap (turned ones apart: their boxes overlap where they do not).
  const chartText = () => {
    const wrong = [];
    for (const chart of all(".chart")) {
      const frame = chart.getBoundingClientRect();
      for (const text of all("svg text", chart)) {
        const box = text.getBoundingClientRect();
        const inside = box.left > frame.left - 1 && box.right < frame.right + 1 && box.top > frame.top - 1 && box.bottom < frame.bottom + 1;
        if (box.width && !inside) wrong.push(`${chart.dataset.chart}: "${text.textContent}" leaves the chart`);
      }
      for (const axis of [".xtick", ".ytick", ".x2tick", ".y2tick"]) {
        const upright = all(`${axis} text`, chart).filter((text) => !/rotate\(-?[1-9]/.test(text.getAttribute("transform") || ""));
        for (const [a, b] of pairs(upright)) {
          if (!overlap(a.getBoundingClientRect(), b.getBoundingClientRect(), 1.5)) continue;
          wrong.push(`${chart.dataset.chart}: ticks "${a.textContent}" and "${b.textContent}" overlap`);
        }
      }
    }
    return wrong;
  };

  return { drawn, outside, overlapping, chartText };
})();
