// A click on the head of a column sorts its table, numbers as numbers; a second click turns the order round.
for (const head of document.querySelectorAll("th")) {
  head.title = "sort";
  head.style.cursor = "pointer";
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.dataset.down !== "yes";
    const key = row => row.cells[column].textContent.trim();
    const number = text => parseFloat(text.replace(/[, ]/g, "").replace("\u2212", "-"));
    const compare = (a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;  // what is no number stands at the end
      return (down ? -1 : 1) * (isNaN(x) ? key(a).localeCompare(key(b)) : x - y);
    };
    [...body.rows].sort(compare).forEach(row => body.append(row));
    head.dataset.down = down ? "yes" : "no";
  });
}
