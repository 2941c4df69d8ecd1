"use strict";
(() => {
  const { numbers, bytes, loss, place, readOut, keeping } = window.spectrim;
  const $ = (id) => document.getElementById(id);
  const live = numbers.live;
  const slider = $("budget");
  const say = (text) => { $("status").textContent = text; };

  const call = async (path, body) => {
    const headers = { "X-Spectrim-Token": live.token, "Content-Type": "application/json" };
    const given = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const answer = await fetch(path, { headers, ...given });
    const values = await answer.json();
    if (!answer.ok) throw new Error(values.error);
    return values;
  };
  const budget = () => Number(slider.value) / 100;

  /* a plan on the page */
  const show = (plan) => {
    readOut(plan.kept, plan.loss, plan.bytes);
    $("budget-dense").textContent = `${plan.dense} of ${plan.layers}`;
    const [x, y] = place(plan.kept, plan.loss);
    const chosen = $("chosen");
    chosen.setAttribute("cx", x);
    chosen.setAttribute("cy", y);
    const label = document.querySelector("#curve .mark.chosen");
    label.textContent = `predicted +${loss(plan.loss)}`;
    const right = x + 122 < 400;
    label.setAttribute("x", right ? x + 9 : x - 9);
    label.setAttribute("y", right ? Math.max(y - 10, numbers.axes.top + 12) : Math.min(y + 18, numbers.axes.bottom - 6));
    label.setAttribute("text-anchor", right ? "start" : "end");
    for (const [key, [text, share, dense, title]] of Object.entries(plan.cells)) {
      const cell = document.querySelector(`[data-cell="${key}"]`);
      (cell.querySelector("a") || cell).textContent = text;
      cell.style.setProperty("--k", share.toFixed(3));
      cell.classList.toggle("middle", share > 0.52);
      cell.classList.toggle("strong", share > 0.69);
      cell.classList.toggle("dense", dense);
      cell.title = title;
    }
    for (const name of Object.keys(keeping)) keeping[name](plan.ranks[name]);
    for (const row of document.querySelectorAll("[data-part]")) {
      const stored = plan.parts[row.dataset.part];
      row.querySelector(".stored").textContent = bytes(stored);
      row.querySelector(".now").style.width = `${(100 * stored) / live.most}%`;
    }
    if ($("bytes-now")) $("bytes-now").textContent = bytes(plan.bytes);
  };

  /* the latest position is asked for when the one before it is answered */
  let busy = false;
  let again = false;
  const ask = async () => {
    if (busy) { again = true; return; }
    busy = true;
    do {
      again = false;
      try {
        show(await call(`plan?budget=${budget()}`));
        if ($("progress").hidden) say("");
      } catch (error) { say(error.message); }
    } while (again);
    busy = false;
  };
  slider.addEventListener("input", ask);

  if ($("save")) $("save").addEventListener("click", async () => {
    try { say(`plan saved to ${(await call("save", { budget: budget() })).path}`); }
    catch (error) { say(error.message); }
  });

  /* text at this size: a new request ends the one before it */
  let written = new Map();
  let writing = 0;
  let waiting;
  const shared = (one, other) => {
    let same = 0;
    while (same < one.length && one[same] === other[same]) same += 1;
    return same === one.length && same === other.length ? same : one.lastIndexOf(" ", same) + 1;
  };
  const list = () => {
    let above = null;
    $("written").replaceChildren();
    for (const percent of [...written.keys()].sort((a, b) => b - a)) {
      const text = written.get(percent);
      const same = above === null ? text.length : shared(text, above);
      const [term, given, apart] = ["dt", "dd", "em"].map((name) => document.createElement(name));
      term.textContent = `${percent}%`;
      apart.textContent = text.slice(same);
      given.append(text.slice(0, same), apart);
      $("written").append(term, given);
      above = text;
    }
  };
  const showText = (state) => {
    const prompt = document.createElement("b");
    prompt.textContent = state.prompt;
    $("text").replaceChildren(prompt, state.text);
    $("text").setAttribute("aria-busy", state.status === "running");
    $("text-status").textContent = state.message;
    if (state.status !== "done") return;
    written.set(Math.round(100 * state.budget), state.text);
    list();
  };
  const read = async () => {
    try {
      const state = await call("text");
      if (state.number !== writing) return;
      showText(state);
      if (state.status === "running") setTimeout(read, 120);
    } catch (error) { unwritten(error); }
  };
  const unwritten = (error) => {
    $("text").setAttribute("aria-busy", "false");
    $("text-status").textContent = error.message;
  };
  const write = async () => {
    try {
      const state = await call("text", { budget: budget(), prompt: $("prompt").value });
      writing = state.number;
      showText(state);
      read();
    } catch (error) { unwritten(error); }
  };
  const soon = (delay) => { clearTimeout(waiting); waiting = setTimeout(write, delay); };
  if (live.writes) {
    slider.addEventListener("input", () => soon(150));
    $("prompt").addEventListener("input", () => { written = new Map(); list(); soon(500); });
    write();
  }

  /* the compression */
  const running = (on) => {
    $("progress").hidden = !on;
    $("stop").hidden = !on;
    $("start").disabled = on || !live.output;
  };
  const ended = (state) => {
    running(false);
    say(state.message);
    if (state.status !== "done") return;
    const link = document.createElement("a");
    link.href = `report?token=${encodeURIComponent(live.token)}`;
    link.textContent = "its report";
    $("status").append(" · ", link);
  };
  const follow = async () => {
    try {
      const state = await call("progress");
      if (state.status === "idle") return;
      if (state.status !== "running") { ended(state); return; }
      running(true);
      $("progress").value = state.total ? state.done / state.total : 0;
      say(state.total ? `${state.what}: ${state.done} of ${state.total}` : state.what);
      setTimeout(follow, 300);
    } catch (error) { running(false); say(`the server does not answer: ${error.message}`); }
  };
  $("start").addEventListener("click", async () => {
    try { await call("start", { budget: budget() }); follow(); }
    catch (error) { say(error.message); }
  });
  $("stop").addEventListener("click", () => call("stop", {}).catch((error) => say(error.message)));
  follow();
})();
