"use strict";

// Numbers in brief: short, and exact where they are whole.
function brief(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 0.001 || size === 0
    ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

// About `count` round numbers from low to high, at least `least` apart.
function ticks(low, high, count, least) {
  const rough = Math.max((high - low) / count || 1, least || 0), power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// The index of the last point at or before a step; 0 if there is none.
function at(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (steps[middle] <= step) low = middle; else high = middle - 1;
  }
  return low;
}

// Which nodes a route reaches backwards from the last one. Edges are ordered by their destination.
function reached(nodes, edges, weights) {
  const used = new Array(nodes).fill(false);
  used[nodes - 1] = true;
  for (let i = edges.length - 1; i >= 0; i--) if (weights[i] > 0 && used[edges[i][1]]) used[edges[i][0]] = true;
  return used;
}

// The extent of some lines, with room where it has none, so that noise does not look like a change; rates have theirs from the start.
function extent(lines, range) {
  const [y0, y1] = range || [Infinity, -Infinity], box = { x0: Infinity, x1: -Infinity, y0, y1 };
  for (const line of lines) {
    for (const x of line.x) { box.x0 = Math.min(box.x0, x); box.x1 = Math.max(box.x1, x); }
    for (const row of [line.y, line.low || [], line.high || []]) {
      for (const y of row) { box.y0 = Math.min(box.y0, y); box.y1 = Math.max(box.y1, y); }
    }
  }
  box.last = box.x1;
  if (box.x0 === box.x1) { box.x0 = Math.min(0, box.x0); box.x1 = Math.max(box.x1, box.x0 + 1); }
  const lack = box.y0 === box.y1 ? 1 : 0.02 * Math.max(Math.abs(box.y0), Math.abs(box.y1)) - (box.y1 - box.y0);
  if (lack > 0) { box.y0 -= lack / 2; box.y1 += lack / 2; }
  return box;
}

function element(name, attributes, content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
  if (content !== undefined) made.textContent = content;
  return made;
}

const DASHES = ["", "7 4", "2 3", "9 3 2 3", "14 4", "4 2 1 2", "12 3 2 3 2 3"];

// No line is told from others by its colour alone, and no two of 56 have both in common.
function style(number) {
  const dash = DASHES[(number + Math.floor(number / 8)) % DASHES.length];
  return { stroke: `var(--c${number % 8})`, "stroke-dasharray": dash };
}

function startCurves(views) {
  const view = document.getElementById("view"), line = document.getElementById("line");
  const step = document.getElementById("step"), chart = document.getElementById("chart");
  const legend = document.getElementById("legend"), output = document.getElementById("at");

  function lines() { return views[Number(view.value)].lines; }
  function range() { return views[Number(view.value)].range; }
  function unit() { return views[Number(view.value)].unit; }
  function of() { return views[Number(view.value)].of; }

  function fill() {
    line.replaceChildren(new Option("all", ""), ...lines().map((one, i) => new Option(one.label, i)));
    step.value = step.max;
    draw();
  }

  function draw() {
    const shown = lines(), box = extent(shown, range()), chosen = line.value;
    const width = Math.max(280, chart.clientWidth - 18), height = Math.round(Math.min(380, Math.max(230, width * 0.5)));
    const left = 52, right = 26, top = 10, bottom = 38;
    const x = (value) => left + (value - box.x0) / (box.x1 - box.x0) * (width - left - right);
    const y = (value) => height - bottom - (value - box.y0) / (box.y1 - box.y0) * (height - top - bottom);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": view.selectedOptions[0].text });
    for (const value of ticks(box.y0, box.y1, 5)) {
      svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      svg.append(element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, brief(value)));
    }
    for (const value of ticks(box.x0, box.x1, width < 500 ? 3 : 6, 1)) {
      svg.append(element("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, brief(value)));
    }
    svg.append(element("text", { x: width - right, y: height - 5, "text-anchor": "end" }, unit()));
    const emphasis = (i) => chosen === "" ? "" : chosen === String(i) ? " strong" : " faint";
    const along = (one, values) => one.x.map((value, k) => `${x(value).toFixed(1)} ${y(values[k]).toFixed(1)}`);
    shown.forEach((one, i) => {  // all bands first, so that none covers a line
      if (!one.low) return;
      const d = `M${[...along(one, one.high), ...along(one, one.low).reverse()].join("L")}Z`;
      svg.append(element("path", { class: `band${emphasis(i)}`, d, style: `fill:var(--c${i % 8})` }));
    });
    shown.forEach((one, i) => {
      const points = along(one, one.y);
      svg.append(element("path", { class: `line${emphasis(i)}`, d: `M${points.join("L")}`, ...style(i) }));
      if (points.length === 1) svg.append(element("circle", { cx: x(one.x[0]), cy: y(one.y[0]), r: 4, fill: `var(--c${i % 8})` }));
    });
    const now = Math.min(box.last, box.x0 + (box.x1 - box.x0) * step.value / step.max);
    svg.append(element("line", { class: "cursor", x1: x(now), x2: x(now), y1: top, y2: height - bottom }));
    chart.replaceChildren(svg);
    legend.replaceChildren(...shown.map((one, i) => {
      const item = document.createElement("li"), sample = element("svg", { width: 30, height: 8, "aria-hidden": "true" });
      sample.append(element("line", { x1: 0, x2: 30, y1: 4, y2: 4, "stroke-width": 3, ...style(i) }));
      const value = document.createElement("b"), k = at(one.x, now);
      value.textContent = one.x.length && one.x[0] <= now ? brief(one.y[k]) : "-";
      item.append(sample, `${one.label} `, value);
      if (one.low && one.x[0] <= now) item.append(` (${brief(one.low[k])} to ${brief(one.high[k])})`);
      return item;
    }));
    const one = chosen === "" ? null : shown[Number(chosen)];
    output.textContent = `${of()}, at ${brief(Math.round(now))} ${unit()}` +
      (one && one.x[0] <= now ? `: ${one.label} ${brief(one.y[at(one.x, now)])}.` : "; see the list below.");
    step.setAttribute("aria-valuetext", `${brief(Math.round(now))} ${unit()}`);
  }

  view.addEventListener("change", fill);
  line.addEventListener("change", draw);
  step.addEventListener("input", draw);
  addEventListener("resize", draw);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.firstElementChild.getBoundingClientRect(), inside = (event.clientX - box.left - 52) / (box.width - 78);
    step.value = Math.round(Math.min(1, Math.max(0, inside)) * step.max);
    draw();
  });
  fill();
}

// Shows another route in the drawing of the whole graph, by the same rules as dynroute.inspect.draw.
function showRoute(svg, graph, weights) {
  const used = reached(graph.nodes, graph.edges, weights), circles = [...svg.querySelectorAll("circle")];
  const first = circles[0], paths = svg.routePaths = svg.routePaths || [...svg.querySelectorAll("path")];
  const order = paths.map((_, i) => i).sort((a, b) => weights[a] - weights[b]);
  for (const i of order) {
    const path = paths[i], weight = weights[i], [source, node] = graph.edges[i], runs = weight > 0 && used[node];
    path.setAttribute("stroke", runs ? "#146e3c" : weight > 0 ? "#7d8590" : "#dfe3e8");
    path.setAttribute("stroke-opacity", runs ? 0.15 + 0.85 * Math.sqrt(Math.min(weight, 1)) : 1);
    path.setAttribute("stroke-width", runs ? 1 + 3 * weight : 1);
    path.setAttribute("stroke-dasharray", weight > 0 && !runs ? "3 3" : "");
    path.querySelector("title").textContent = `${source} to ${node}: ${weight.toFixed(3)}`;
    path.parentNode.insertBefore(path, first);
  }
  circles.forEach((circle, node) => {
    circle.setAttribute("fill", used[node] ? "#146e3c" : "#ffffff");
    circle.setAttribute("stroke", used[node] ? "#146e3c" : "#7d8590");
    circle.nextElementSibling.setAttribute("fill", used[node] ? "#ffffff" : "#7d8590");
  });
  const count = used.filter(Boolean).length;
  svg.setAttribute("aria-label", `${count} of ${graph.nodes} nodes run`);
  return count;
}

function startExplorer(graphs, entries) {
  const task = document.getElementById("task"), moment = document.getElementById("moment");
  const frame = document.getElementById("frame"), graph = document.getElementById("graph");
  const output = document.getElementById("state");
  let shown = null;

  function pick() {
    const entry = entries[Number(task.value)];
    moment.max = entry.moments.length - 1;
    moment.value = 0;
    if (shown !== entry.graph) {
      shown = entry.graph;
      graph.replaceChildren();
      if (shown !== null) {
        graph.append(document.getElementById(`graph-${shown}`).content.cloneNode(true));
        const svg = graph.querySelector("svg");  // a small screen scrolls it before its numbers become too small to read
        svg.style.minWidth = `${Math.min(544, svg.viewBox.baseVal.width)}px`;
      }
    }
    graph.hidden = shown === null;
    show();
  }

  function show() {
    const entry = entries[Number(task.value)], now = entry.moments[Number(moment.value)];
    const sentences = [`${entry.of}, step ${now.step} of ${entry.horizon}`];
    if (entry.graph !== null) {
      const form = graphs[entry.graph], weights = new Array(form.edges.length).fill(0);
      for (let i = 0; i < now.route.length; i += 2) weights[now.route[i]] = now.route[i + 1];
      const count = showRoute(graph.querySelector("svg"), form, weights);
      sentences.push(`${count} of ${form.nodes} nodes run`);
    }
    sentences.push(entry.solved === null ? "not solved in this episode" : now.step > entry.solved
      ? `solved at step ${entry.solved}` : `will be solved at step ${entry.solved}`);
    frame.hidden = !now.frame;
    if (now.frame) frame.src = now.frame;
    frame.alt = `The scene of ${entry.task} at step ${now.step}`;
    output.textContent = sentences.join("; ") + ".";
    moment.setAttribute("aria-valuetext", `step ${now.step}`);
  }

  task.addEventListener("change", pick);
  moment.addEventListener("input", show);
  pick();
}

if (typeof document !== "undefined") {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (data.views.length) startCurves(data.views);
  if (data.entries.length) startExplorer(data.graphs, data.entries);
} else {
  module.exports = { at, extent, reached, ticks, brief };
}
