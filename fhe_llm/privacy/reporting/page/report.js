"use strict";
const filters = document.getElementById("filters");
const byName = document.getElementById("by-name");
const byKind = document.getElementById("by-kind");
const found = document.getElementById("found");

function filter() {
  const name = byName.value, kind = byKind.value;
  for (const part of document.querySelectorAll("[data-name], [data-kind]")) {
    const otherName = name && "name" in part.dataset && part.dataset.name !== name;
    const otherKind = kind && "kind" in part.dataset && part.dataset.kind !== kind;
    part.hidden = Boolean(otherName || otherKind);
  }
  const rows = [...document.querySelectorAll("#event-table tbody tr")];
  const left = rows.filter((row) => !row.hidden).length;
  found.value = name || kind ? `${left} of ${rows.length} events` : "";
}
filters.hidden = false;
filters.addEventListener("change", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filter();

function follow(plot) {
  const card = plot.closest(".card");
  const rows = [...card.querySelectorAll(".numbers tbody tr")];
  const readout = card.querySelector(".readout");
  const cursor = plot.querySelector(".cursor");
  const start = Number(plot.dataset.start), end = Number(plot.dataset.end);
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    const time = start + ((event.clientX - box.left) / box.width) * (end - start);
    const row = rows.findLast((each) => Number(each.dataset.at) <= time) ?? rows[0];
    const [from, spent, , left] = [...row.children].map((cell) => cell.textContent);
    const x = Math.max(0, ((Number(row.dataset.at) - start) / (end - start)) * 1000);
    cursor.setAttribute("d", `M${x.toFixed(1)} 0V240`);
    readout.textContent = `${from}: ${spent} spent${left === "–" ? "" : `, ${left} left`}`;
  };
  plot.addEventListener("pointermove", at);
  plot.addEventListener("pointerdown", at);
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "M0 0");
    readout.textContent = readout.dataset.rest;
  });
}
document.querySelectorAll(".card .plot").forEach(follow);
