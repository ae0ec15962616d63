// The live page: asks how the run stands, and shows the report again when it has changed. All that comes from the run is
// put on the page as text, never as markup. The token is in the address after #, which is sent to nobody.
"use strict";
(() => {
  const SECONDS = 2;
  const token = location.hash.slice(1);
  const part = (id) => document.getElementById(id);
  const shown = new Map();
  let version = 0;
  let latest = null;

  function element(tag, text = "", kind = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function button(text, act) {
    const made = element("button", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  // A screen reader hears what is new, and not the same again.
  function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function time(seconds) {
    if (seconds < 60) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  }

  function number(value) {
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  }

  function spoken(value) {
    return typeof value === "object" && value ? Object.values(value).map(spoken).join(" ") : String(value);
  }

  // How it stands.

  function showStanding(state) {
    put(part("name"), state.name);
    document.title = `${state.name}: ${state.total ? `${state.done} of ${state.total}` : state.stages.doing || state.state}`;
    const ends = Object.entries(state.ends).map(([how, count]) => `${count} ${how}`).join(", ");
    const total = state.total ? ` of ${state.total}` : "";
    const left = state.left === null ? "" : `; about ${time(state.left)} left`;
    const age = state.said > 30 ? `, as it said ${time(state.said)} ago` : "";
    put(part("standing"), state.ended
      ? `The sweep has ended: ${state.state}. ${state.done}${total} trials${ends && ": " + ends}.`
      : `At work${age}. ${state.done}${total} trials have ended${ends && ": " + ends}${left}.`);
    part("done").hidden = !state.total;
    part("done").max = state.total || 1;
    part("done").value = state.done;
    const words = { hours: "Hours", gpu_hours: "GPU-hours", judge_calls: "Judge calls", cost: "Cost" };
    part("spent").replaceChildren(...Object.entries(state.spent).map(([name, [value, limit]]) => {
      const pair = element("div");
      const amount = (Number.isInteger(value) ? number(value) : (value || 0).toFixed(2)) + (limit === null ? "" : ` of ${number(limit)}`);
      pair.append(element("dt", words[name] || name), element("dd", amount));
      return pair;
    }));
    const alarms = { ...state.alarms };
    for (const [name, trial] of Object.entries(state.running)) if (trial.alarm) alarms[name] = trial.alarm;
    part("alarms-part").hidden = !Object.keys(alarms).length;
    part("alarms").replaceChildren(...Object.entries(alarms).map(([name, alarm]) => element("li", `${name}: ${alarm}`)));
  }

  // Each trial keeps its elements, so that the focus stays where it is.
  function card(name) {
    const item = element("li");
    const made = { item, doing: element("p"), bar: element("progress"), numbers: element("p", "", "soft"), alarm: element("p", "", "alarm") };
    const head = element("h3", name);
    made.bar.setAttribute("aria-label", `Updates of ${name}`);
    made.stop = button("Stop", () => askToStop(name));
    made.stop.setAttribute("aria-label", `Stop ${name}`);
    const clone = button("Clone…", () => askForClone(name));
    clone.setAttribute("aria-label", `Clone ${name}`);
    clone.hidden = made.stop.hidden = !token;
    const buttons = element("p", "", "buttons");
    buttons.append(made.stop, clone);
    item.append(head, made.doing, made.bar, made.numbers, made.alarm, buttons);
    part("running").append(item);
    shown.set(name, made);
    return made;
  }

  function showRunning(state) {
    for (const [name, trial] of Object.entries(state.running)) {
      const made = shown.get(name) || card(name);
      const step = trial.updates ? `, ${trial.doing === "training" ? "update " : ""}${trial.step || 0} of ${trial.updates}` : "";
      const left = trial.left === null ? "" : `, about ${time(trial.left)} of training left`;
      put(made.doing, trial.stopping ? "Will stop at its next report" : (trial.doing || "starting") + step + left);
      made.bar.hidden = !trial.updates;
      made.bar.max = trial.updates || 1;
      made.bar.value = trial.step || 0;
      const numbers = [["loss", trial.loss], ["chosen drift", trial.chosen_drift]];
      const knobs = Object.entries(trial.values).map(([path, value]) =>
        `${path.split(".").at(-1)} ${typeof value === "number" ? number(value) : spoken(value)}`);
      put(made.numbers, [...numbers.filter(([, value]) => typeof value === "number")
        .map(([word, value]) => `${word} ${value.toFixed(3)}`), ...knobs].join(" · "));
      put(made.alarm, trial.alarm ? `Alarm: ${trial.alarm}` : "");
      made.alarm.hidden = !trial.alarm;
      made.item.classList.toggle("alarmed", Boolean(trial.alarm));
      made.stop.disabled = trial.stopping;
    }
    for (const [name, made] of shown) {
      if (name in state.running) continue;
      made.item.remove();
      shown.delete(name);
    }
    part("idle").hidden = shown.size > 0;
    put(part("idle"), state.ended ? "Nothing runs any more." : state.waiting.length
      ? `Next: ${state.waiting.join(", ")}.` : state.stages.doing
      ? `For all trials: ${state.stages.doing}${state.stages.updates ? `, ${state.stages.step || 0} of ${state.stages.updates}` : ""}.`
      : "Nothing runs at the moment: a sweep prepares its data and models first.");
    part("clone").hidden = part("extend").hidden = !token || state.ended;
    part("extend").hidden ||= state.budget === null;
    part("locked").hidden = Boolean(token) || state.ended;
  }

  // What a reader would miss who does not look all the time.
  function tell(state) {
    if (!latest) return;
    const news = [];
    if (state.done > latest.done) news.push(`${state.done} of ${state.total} trials have ended.`);
    for (const [name, trial] of Object.entries(state.running)) {
      const before = latest.running[name];
      if (trial.alarm && !(before && before.alarm)) news.push(`${name} has an alarm: ${trial.alarm}.`);
    }
    if (state.ended) news.push(`The sweep has ended. ${state.report ? `Its report: ${state.report}` : state.problem || ""}`);
    if (news.length) put(part("said"), news.join(" "));
  }

  // The report is loaded next to the one that is shown, and takes its place when it is whole.
  function showReport(state) {
    const behind = state.behind ? `${state.behind} more have finished since; it is built again before long.` : "";
    const about = state.version ? behind : "It appears with the first trial that has finished.";
    put(part("about"), state.problem || about);
    put(part("report-head"), state.ended ? "The report" : "The report so far");
    if (!state.version || state.version === version) return;
    version = state.version;
    const before = part("report").querySelector("iframe:not(.next)");
    for (const late of part("report").querySelectorAll("iframe.next")) late.remove();
    const frame = element("iframe", "", "next");
    frame.title = "Report";
    frame.addEventListener("load", () => {
      const inside = frame.contentDocument;
      const fit = () => { frame.style.height = `${inside.documentElement.offsetHeight}px`; };
      fit();
      new frame.contentWindow.ResizeObserver(fit).observe(inside.documentElement);
      if (before) takeOver(before, inside);
      frame.classList.remove("next");
      frame.dataset.version = String(state.version);
      if (before) before.remove();
    });
    frame.src = `report?${version}`;
    part("report").append(frame);
  }

  // The point that a reader has chosen stays chosen.
  function takeOver(before, inside) {
    const chosen = before.contentDocument.getElementById("front-choice");
    const choice = inside.getElementById("front-choice");
    const detail = inside.getElementById("front-detail");
    if (!chosen || !chosen.value || !choice || !detail) return;
    const choose = () => {
      choice.value = chosen.value;
      if (choice.value) choice.dispatchEvent(new Event("change"));
    };
    if (detail.dataset.ready) choose();
    else new MutationObserver((_, observer) => { observer.disconnect(); choose(); }).observe(detail, { attributeFilter: ["data-ready"] });
  }

  // What the buttons ask.

  async function send(what, body) {
    const answer = await fetch(what, {
      method: "POST",
      headers: { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const text = await answer.text();
    try {
      const { done, said } = JSON.parse(text);
      return [done, said];
    } catch {
      return [false, text];
    }
  }

  let submit = null;

  function ask(head, about, fields, doing, what) {
    put(part("ask-head"), head);
    put(part("ask-about"), about);
    part("ask-fields").replaceChildren(...fields);
    put(part("ask-do"), doing);
    put(part("ask-said"), "");
    part("ask-do").disabled = false;
    submit = what;
    part("ask").showModal();
  }

  part("ask").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (part("ask-do").disabled) return;
    part("ask-do").disabled = true;
    try {
      const [done, said] = await submit();
      if (done) {
        part("ask").close();
        put(part("said"), said);
      } else put(part("ask-said"), said);
    } catch {
      put(part("ask-said"), "The server does not answer: the sweep has ended, or its command was closed.");
    }
    part("ask-do").disabled = false;
  });
  part("ask-leave").addEventListener("click", () => part("ask").close());

  function labelled(text, field) {
    const label = element("label", text);
    label.append(field);
    return label;
  }

  function askToStop(trial) {
    ask(`Stop ${trial}?`, "It ends at its next report with what it has, and is recorded as stopped.", [], "Stop it",
      () => send("stop", { trial }));
  }

  async function askForClone(trial) {
    const knobs = await (await fetch("knobs")).json();
    const choice = element("select");
    for (const name of Object.keys(knobs)) choice.append(element("option", name));
    const values = element("textarea");
    values.rows = 6;
    values.spellcheck = false;
    const lines = () => Object.entries(knobs[choice.value] || {}).map(([path, value]) =>
      `${path}=${typeof value === "string" ? value : JSON.stringify(value)}`);
    const fill = () => { values.value = lines().join("\n"); };
    choice.addEventListener("change", fill);
    if (trial) choice.value = trial;
    fill();
    const fields = [labelled("Trial", choice), labelled("Its knobs, one KEY=VALUE a line: change them, or add others", values)];
    ask("Clone a trial", "It runs again with the knobs that you change, next to the search's own trials.", fields, "Run the clone", () => {
      const own = new Set(lines());
      const changes = values.value.split("\n").map((line) => line.trim()).filter((line) => line && !own.has(line));
      return send("clone", { trial: choice.value, changes });
    });
  }

  function askForMore() {
    const budget = latest.budget;
    const trials = element("input");
    Object.assign(trials, { type: "number", min: "1", value: "4", required: true });
    ask("Search on", `The search has ${budget} trials. Its winners are confirmed after all of them.`, [labelled("Further trials", trials)],
      "Search on", () => send("extend", { budget, trials: Number(trials.value) }));
  }

  part("clone").addEventListener("click", () => askForClone(null));
  part("extend").addEventListener("click", askForMore);

  // Again and again, until there is nothing more to come.
  async function look() {
    let state;
    try {
      const answer = await fetch("state");
      if (!answer.ok) throw new Error(answer.statusText);
      state = await answer.json();
    } catch {
      const where = latest ? ` Its report will be in the run's folder: slime-ray report ${latest.run}.` : "";
      put(part("standing"), `The server does not answer any more: the sweep has ended, or its command was closed.${where}`);
      showOver();
      return;
    }
    showStanding(state);
    showRunning(state);
    showReport(state);
    tell(state);
    if (state.trouble) put(part("said"), state.trouble);
    latest = state;
    document.documentElement.dataset.looked = String(Number(document.documentElement.dataset.looked || 0) + 1);
    if (state.ended) showOver();
    else setTimeout(look, SECONDS * 1000);
  }

  function showOver() {
    for (const node of document.querySelectorAll("main button")) node.hidden = true;
    part("locked").hidden = true;
    if (part("ask").open) part("ask").close();
    document.documentElement.dataset.over = "yes";
  }

  look();
})();
