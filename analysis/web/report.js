// The interactive front. Data, specifications and texts stand in the page; what models wrote is put there as text, never
// as markup. If anything fails, the drawing that the page has anyway stays.
"use strict";
(() => {
  const read = (name) => JSON.parse(document.getElementById(name).textContent);
  const data = read("front-data");
  const part = (name) => document.getElementById("front-" + name);
  const options = { actions: false, renderer: "svg", ast: true, tooltip: false };
  const LOOKS = {
    "arm": ["circle", "#0072B2", "#0072B2"],
    "confirmed winner": ["diamond", "#D55E00", "#D55E00"],
    "search trial": ["circle", "transparent", "#6f6f6f"],
  };
  // By height and not by the order of drawing: so arrow keys go up and down.
  const points = [...data.points].sort((one, other) => other.y - one.y || other.x - one.x);
  // As the specification names it: what a screen reader says of a point.
  for (const point of points) {
    point.said = `${point.kind} ${point.label}: ${point.facts.map(([name, value]) => `${name} ${value}`).join("; ")}`;
  }
  const byId = new Map(points.map((point) => [point.id, point]));
  let front = null;
  let current = points[0].id;

  function element(tag, text = "", kind = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function told(facts) {
    const list = element("dl");
    for (const [name, value] of facts) list.append(element("dt", name), element("dd", value));
    return list;
  }

  // Where the pointer or the focus is.

  function symbols() {
    return [...part("chart").querySelectorAll("g.points_marks > path")];
  }

  function pointOf(symbol) {
    const item = symbol && symbol.__data__;
    return item && item.datum && byId.get(item.datum.id);
  }

  function showTip(point, symbol) {
    const tip = part("tip");
    tip.replaceChildren(element("b", point.label), element("span", " " + point.kind), told(point.facts));
    tip.hidden = false;
    const frame = part("chart").getBoundingClientRect();
    const place = symbol.getBoundingClientRect();
    const left = place.left - frame.left + place.width / 2;
    const below = place.bottom - frame.top + 8;
    tip.style.left = Math.max(0, Math.min(left - tip.offsetWidth / 2, frame.width - tip.offsetWidth)) + "px";
    const above = place.top - frame.top - tip.offsetHeight - 8;
    tip.style.top = (above > -40 ? above : below) + "px";
  }

  function hideTip() {
    part("tip").hidden = true;
  }

  // One point is in the order of the tab key; arrows go on from there.
  function arrange() {
    for (const symbol of symbols()) {
      const point = pointOf(symbol);
      symbol.setAttribute("tabindex", point.id === current ? "0" : "-1");
      symbol.setAttribute("aria-pressed", String(point.id === part("choice").value));
    }
  }

  function focus(id) {
    current = id;
    arrange();
    symbols().find((symbol) => pointOf(symbol).id === id).focus();
  }

  function onKey(event) {
    const point = pointOf(event.target);
    if (!point) return;
    const place = points.indexOf(point);
    const next = { ArrowDown: place + 1, ArrowRight: place + 1, ArrowUp: place - 1, ArrowLeft: place - 1, Home: 0, End: points.length - 1 };
    if (event.key === "Enter" || event.key === " ") choose(point.id);
    else if (event.key === "Escape") hideTip();
    else if (event.key in next) focus(points[Math.max(0, Math.min(points.length - 1, next[event.key]))].id);
    else return;
    event.preventDefault();
  }

  // What a point's trials did.

  async function choose(id) {
    const point = byId.get(id);
    const detail = data.details[id];
    part("choice").value = id;
    current = id;
    await front.signal("chosen", id).runAsync();
    arrange();
    const shown = part("detail");
    shown.replaceChildren(element("h3", point.label), told(point.facts));
    await drawCurves(shown, detail);
    shown.append(...answers(point, detail));
    shown.dataset.shown = id;
    part("said").textContent = point.said + ". Its curves and answers are below the chart.";
  }

  async function drawCurves(shown, detail) {
    const panels = [...new Set(detail.lines.map((line) => line.panel))];
    if (!panels.length) shown.append(element("p", "No curve was recorded.", "soft"));
    const row = element("div", "", "curves");
    const charts = [];
    shown.append(row);
    for (const panel of panels) {
      const lines = detail.lines.filter((line) => line.panel === panel);
      const names = [...new Set(lines.map((line) => line.name))];
      const seeds = [...new Set(lines.map((line) => line.seed))];
      const title = names.length > 1 ? "Held-out " + panel : panel;
      const figure = element("figure");
      const chart = element("div", "", "chart");
      const caption = element("figcaption", title[0].toUpperCase() + title.slice(1) + ": ");
      for (const name of names) caption.append(element("span", name, "line " + name), " ");
      const updates = Math.max(...lines.map((line) => line.updates));
      caption.append(seeds.length > 1 ? `seeds ${seeds.join(", ")}` : `seed ${seeds[0]}`);
      if (updates > 1) caption.append(`; each value is the mean of up to ${updates} updates`);
      figure.append(caption, chart);
      row.append(figure);
      const spec = read("curves-spec");
      spec.description = `${title}, from ${lines.map((line) => `${line.name} seed ${line.seed}: ${line.values[0]} to ${line.values.at(-1)}`).join("; ")}`;
      spec.data.values = lines.flatMap((line) =>
        data.steps[line.steps].map((step, place) => ({ step, value: line.values[place], name: line.name, seed: line.seed })));
      charts.push([chart, spec]);
    }
    // Only now that all stand side by side is it known how wide each is.
    await Promise.all(charts.map(([chart, spec]) => vegaEmbed(chart, spec, options)));
  }

  function answers(point, detail) {
    if (!detail.answers.length) return [element("p", "No answer was recorded.", "soft")];
    const said = element("h4", `First ${detail.answers.length} answers, seed ${detail.seed}, beside the baseline's`);
    return [said, ...detail.answers.map((pair) => {
      const article = element("article");
      const both = element("div", "", "pair");
      const sides = [
        [point.label + ": " + pair.verdict + (pair.broken && ` (${pair.broken})`), pair.answer, pair.added, "ins"],
        ["SFT baseline" + (pair.baseline_broken && ` (${pair.baseline_broken})`), pair.baseline, pair.gone, "del"],
      ];
      for (const [head, text, spans, tag] of sides) {
        const side = element("div");
        side.append(element("b", head), marked(data.texts[text], spans, tag));
        both.append(side);
      }
      article.append(element("p", data.texts[pair.prompt], "prompt"), both);
      return article;
    })];
  }

  // The spans count characters as Python does, one for each code point.
  function marked(text, spans, tag) {
    const letters = [...text];
    const said = element("p");
    let done = 0;
    for (const [start, end] of spans) {
      said.append(letters.slice(done, start).join(""), element(tag, letters.slice(start, end).join("")));
      done = end;
    }
    said.append(letters.slice(done).join(""));
    return said;
  }

  async function start() {
    const kinds = Object.keys(LOOKS).filter((kind) => points.some((point) => point.kind === kind));
    const looks = (place) => kinds.map((kind) => LOOKS[kind][place]);
    const spec = read("front-spec");
    const value = (list, name) => list.find((one) => one.name === name);
    value(spec.signals, "about").value = {
      x: data.x, short: data.short, y: data.y, limits: data.limits, judged: data.judged, words: data.words,
      kinds, shapes: looks(0), fills: looks(1), strokes: looks(2),
    };
    value(spec.data, "points").values = data.points;
    value(spec.data, "front").values = data.front;
    // Vega's labels fail on marks without items, as those of rows are where a run has none yet.
    const rows = points.filter((point) => point.kind !== "search trial");
    const drawn = { bars: rows.some((point) => point.low !== null), spans: rows.length > 0 };
    const labels = value(spec.marks, "labels").transform[0];
    labels.avoidMarks = labels.avoidMarks.filter((name) => drawn[name]);
    // Shown before it is drawn, so that it has a width.
    document.documentElement.classList.add("live");
    const chart = part("chart");
    front = (await vegaEmbed(chart, spec, { ...options, mode: "vega" })).view;
    arrange();
    front.addResizeListener(() => front.runAfter(arrange));
    front.addEventListener("click", (_, item) => item && item.datum && byId.has(item.datum.id) && choose(item.datum.id));
    for (const name of ["pointerover", "focusin"]) {
      chart.addEventListener(name, (event) => {
        const point = pointOf(event.target);
        if (point) showTip(point, event.target);
      });
    }
    for (const name of ["pointerout", "focusout"]) chart.addEventListener(name, hideTip);
    chart.addEventListener("keydown", onKey);
    const choice = part("choice");
    for (const point of points) {
      const option = element("option", `${point.label} (${point.kind})`);
      option.value = point.id;
      choice.append(option);
    }
    choice.selectedIndex = -1;
    choice.addEventListener("change", () => choose(choice.value));
    part("detail").dataset.ready = "yes";
  }

  start().catch((error) => {
    document.documentElement.classList.remove("live");
    console.error(error);
  });
})();
