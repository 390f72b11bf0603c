"use strict";
// Tables of buttons: a cell is shown under the pointer, and stays shown once it has the focus. One stop of the Tab key;
// arrow keys, Home, End, Page up and Page down move within.
const lcddGrid = (table, show) => {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("button")]);
  let pinned = null;
  const pin = (button) => {
    if (pinned) pinned.removeAttribute("aria-pressed");
    pinned = button;
    button.setAttribute("aria-pressed", "true");
    show(button);
  };
  for (const button of rows.flat()) {
    button.addEventListener("pointerenter", () => show(button));
    button.addEventListener("focus", () => {
      for (const other of rows.flat()) other.tabIndex = other === button ? 0 : -1;
      pin(button);
    });
    button.addEventListener("click", () => pin(button));
  }
  table.addEventListener("pointerleave", () => { if (pinned) show(pinned); });
  table.addEventListener("keydown", (event) => {
    const row = rows.findIndex((buttons) => buttons.includes(event.target));
    if (row < 0) return;
    const column = rows[row].indexOf(event.target);
    const target = {
      ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column],
      Home: [row, 0], End: [row, rows[row].length - 1], PageUp: [0, column], PageDown: [rows.length - 1, column],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    const next = (rows[target[0]] || [])[target[1]];
    if (next) next.focus();
  });
};
