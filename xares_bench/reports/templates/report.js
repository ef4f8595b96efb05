"use strict";
(() => {
  const STEP = 100;
  const datasets = JSON.parse(document.getElementById("predictions").textContent);
  const query = document.getElementById("query");
  const choice = document.getElementById("dataset");
  const wrong = document.getElementById("wrong");
  const body = document.getElementById("rows");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const all = datasets.flatMap(({ name, rows }) => rows.map(([clip, target, prediction, value]) => (
    { name, clip, target, prediction, value, text: [clip, target, prediction].join("\n").normalize("NFKC").toLowerCase() })));
  let found = [];
  let shown = 0;

  function cell(row, label, text, kind) {
    const made = document.createElement("td");
    made.dataset.label = label;
    made.dir = "auto";
    made.className = kind;
    made.textContent = text;
    row.append(made);
  }

  function showMore() {
    const part = document.createDocumentFragment();
    for (const { name, clip, target, prediction, value } of found.slice(shown, shown + STEP)) {
      const row = document.createElement("tr");
      cell(row, "", `${name} · ${clip}`, "small faint");
      cell(row, "target", target, "text");
      cell(row, "prediction", prediction === "" ? "(empty)" : prediction, prediction === "" ? "text faint" : "text");
      cell(row, "value", value === null ? "–" : value.toFixed(3), "num");
      part.append(row);
    }
    body.append(part);
    shown = Math.min(found.length, shown + STEP);
    count.textContent = `${found.length} of ${all.length} rows match` + (shown < found.length ? `, ${shown} shown` : "");
    more.hidden = shown >= found.length;
  }

  function search() {
    const words = query.value.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
    found = all.filter((row) => (choice.value === "" || row.name === choice.value)
      && !(wrong.checked && row.value !== null && row.value >= 1)
      && words.every((word) => row.text.includes(word)));
    shown = 0;
    body.replaceChildren();
    showMore();
  }

  // Browsers open the section that a link leads to, and print what is folded; for those that do not yet:
  document.querySelector(".contents").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link) document.querySelector(link.hash).closest("details").open = true;
  });
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of folded) part.open = false;
  });

  query.addEventListener("input", search);
  choice.addEventListener("change", search);
  wrong.addEventListener("change", search);
  more.addEventListener("click", showMore);
  search();
})();
