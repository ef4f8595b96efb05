"use strict";
(() => {
  const folded = (text) => text.normalize("NFKC").toLowerCase();

  function compared(one, other, place, sign) {
    if (place === 0) return sign * one.cells[0].dataset.text.localeCompare(other.cells[0].dataset.text);
    const [a, b] = [one, other].map((row) => row.cells[place].dataset.value);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // cells without a value come last
    return sign * (Number(a) - Number(b));
  }

  for (const table of document.querySelectorAll("table.board")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, place) => header.firstElementChild.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const order = before === null ? (place === 0 ? "ascending" : "descending")
        : before === "ascending" ? "descending" : "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((one, other) => compared(one, other, place, sign)));
    }));
  }

  // The chooser of columns; its state is in the address, so that a link can carry it.
  const chooser = document.getElementById("chooser");
  const choices = chooser.lastElementChild;
  const columns = [...new Set([...document.querySelectorAll("th[data-column]")].map((header) => header.dataset.column))];
  const boxes = new Map(columns.map((column) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    label.append(box, ` ${column}`);
    choices.append(label);
    return [column, box];
  }));

  function show() {
    const [, list = ""] = /^#hide=(.*)$/.exec(location.hash) ?? [];
    const away = new Set(list.split(",").map((part) => {
      try { return decodeURIComponent(part); } catch { return ""; } // not an address of this page
    }));
    for (const [column, box] of boxes) box.checked = !away.has(column);
    for (const table of document.querySelectorAll("table.board")) {
      [...table.tHead.rows[0].cells].forEach((header, place) => {
        for (const row of table.rows) row.cells[place].hidden = away.has(header.dataset.column);
      });
    }
  }

  function choose() {
    const away = [...boxes].filter(([, box]) => !box.checked).map(([column]) => encodeURIComponent(column));
    location.replace(`#hide=${away.join(",")}`);
  }

  for (const [text, checked] of [["all", true], ["none", false]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      for (const box of boxes.values()) box.checked = checked;
      choose();
    });
    choices.append(button);
  }
  choices.addEventListener("change", choose);
  addEventListener("hashchange", show);
  show();
  chooser.hidden = false;

  const query = document.getElementById("query");
  const count = document.getElementById("count");
  const rows = [...document.querySelectorAll("table.board tbody tr")];
  query.addEventListener("input", () => {
    const words = folded(query.value).split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => folded(row.cells[0].textContent).includes(word));
    count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  });
})();
