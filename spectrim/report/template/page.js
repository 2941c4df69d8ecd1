"use strict";
(() => {
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const $ = (id) => document.getElementById(id);
  document.documentElement.classList.add("js");

  /* numbers as the page writes them (spectrim/report/numbers.py) */
  const bytes = (count) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let step = 0;
    while (count >= 999.5 && step < 4) { count /= 1000; step += 1; }
    const digits = step === 0 || count >= 99.95 ? 0 : count >= 9.995 ? 1 : 2;
    return `${count.toFixed(digits)} ${units[step]}`;
  };
  const loss = (value) => {
    if (value >= 9.995) return value.toFixed(1);
    if (value >= 0.0995) return value.toFixed(2);
    return value > 0 ? String(Number(value.toPrecision(2))) : "0";
  };
  const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")}%`;
  const ratio = (nats) => {
    const r = Math.exp(Math.min(nats, 20));
    return `× ${r.toFixed(r < 1.1 ? 3 : r < 100 ? 2 : 0)}`;
  };

  /* between known points: the logarithm of the loss is linear */
  const between = (xs, ys, at) => {
    if (at <= xs[0]) return ys[0];
    for (let i = 1; i < xs.length; i += 1) {
      if (at > xs[i]) continue;
      const share = (at - xs[i - 1]) / (xs[i] - xs[i - 1]);
      if (ys[i - 1] <= 0 || ys[i] <= 0) return ys[i - 1] + share * (ys[i] - ys[i - 1]);
      return Math.exp(Math.log(ys[i - 1]) * (1 - share) + Math.log(ys[i]) * share);
    }
    return ys[ys.length - 1];
  };

  const place = (kept, nats) => {
    const a = numbers.axes;
    const power = nats > 0 ? Math.log10(nats) : a.low;
    const share = Math.min(Math.max((power - a.low) / (a.high - a.low), 0), 1);
    const along = (kept - a.first) / (1 - a.first);
    return [a.left + along * (a.right - a.left), a.bottom - share * (a.bottom - a.top)];
  };

  /* the size slider */
  const slider = $("budget");
  const xs = numbers.curve.map((point) => point[0]);
  const ys = numbers.curve.map((point) => point[1]);
  const readOut = (kept, nats, total) => {
    $("budget-kept").textContent = percent(kept);
    $("budget-loss").textContent = nats === null ? "–" : `+${loss(nats)}`;
    $("budget-ratio").textContent = nats === null ? "–" : ratio(nats);
    if ($("budget-bytes") && total !== null) $("budget-bytes").textContent = bytes(total);
  };
  const total = (kept) =>
    numbers.bytes && numbers.bytes[0] + kept * (numbers.bytes[1] - numbers.bytes[0]);
  const slide = () => {
    const kept = Number(slider.value) / 100;
    readOut(kept, between(xs, ys, kept), total(kept));
    const cursor = $("cursor");
    cursor.classList.remove("off");
    cursor.setAttribute("transform", `translate(${place(kept, 1)[0]} 0)`);
  };
  if (slider) {
    if (!numbers.live) slider.addEventListener("input", slide);
    $("budget-ratio").textContent = ratio(between(xs, ys, numbers.chosen));
  }

  /* the map opens one layer at a time */
  const open = (name) => {
    for (const layer of document.querySelectorAll(".layer"))
      layer.classList.toggle("shown", layer.dataset.name === name);
    for (const cell of document.querySelectorAll(".map .cell")) {
      const link = cell.querySelector("a");
      cell.classList.toggle("open", link !== null && decodeURIComponent(link.hash) === `#${name}`);
    }
  };
  for (const link of document.querySelectorAll(".map a"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const name = decodeURIComponent(link.hash.slice(1));
      open(name);
      const panel = $(name);
      if (panel.getBoundingClientRect().top > window.innerHeight)
        panel.scrollIntoView({ block: "start" });
    });
  const asked = decodeURIComponent(location.hash.slice(1));
  const first = document.querySelector(".layer.first");
  if (asked in numbers.layers) open(asked);
  else if (first) open(first.dataset.name);

  /* the rank slider of each layer; keeping[name](rank) shows another plan's rank */
  const keeping = {};
  for (const panel of document.querySelectorAll(".layer")) {
    const layer = numbers.layers[panel.dataset.name];
    const input = panel.querySelector(".rank");
    const show = () => {
      const rank = Number(input.value);
      panel.querySelector(".rank-value").textContent = rank;
      panel.querySelector(".rank-loss").textContent = `+${loss(between(layer.ranks, layer.losses, rank))}`;
      panel.querySelector(".rank-cost").textContent = percent(between(layer.ranks, layer.costs, rank));
    };
    const across = (rank) => {
      const last = Math.max(layer.ranks[layer.ranks.length - 1] - 1, 1);
      return numbers.plot.left + ((rank - 1) / last) * (numbers.plot.right - numbers.plot.left);
    };
    const move = () => {
      show();
      const x = across(Number(input.value));
      const cursor = panel.querySelector(".rank-cursor");
      cursor.classList.remove("off");
      cursor.setAttribute("transform", `translate(${x} 0)`);
    };
    input.addEventListener("input", move);
    show();
    keeping[panel.dataset.name] = (rank) => {
      const keep = panel.querySelector(".keep");
      const most = layer.ranks[layer.ranks.length - 1];
      const words = rank === null ? "left dense" : `rank ${rank} of ${most}`;
      panel.querySelector(".state").textContent = words;
      keep.classList.toggle("off", rank === null);
      input.value = rank === null ? most : rank;
      show();
      panel.querySelector(".rank-cursor").classList.add("off");
      if (rank === null) return;
      const label = keep.querySelector("text");
      const left = across(rank) > (numbers.plot.left + numbers.plot.right) / 2;
      label.textContent = `kept: ${rank}`;
      label.setAttribute("x", left ? -6 : 6);
      label.setAttribute("text-anchor", left ? "end" : "start");
      keep.setAttribute("transform", `translate(${across(rank)} 0)`);
    };
  }

  window.spectrim = { numbers, bytes, loss, place, readOut, keeping };
})();
