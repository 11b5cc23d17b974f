// Tables are sorted by a click on a heading, or a key: first rising, then falling. Cells without a value stay last.
const order = (row, place) => {
  const cell = row.cells[place];
  if ("v" in cell.dataset) return Number(cell.dataset.v);
  return cell.classList.contains("n") ? null : cell.textContent;
};
const compare = (a, b) =>
  typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falls = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [order(row, place), row]);
      const known = rows.filter(([value]) => value !== null);
      known.sort(([a], [b]) => (falls ? compare(b, a) : compare(a, b)));
      body.append(...[...known, ...rows.filter(([value]) => value === null)].map(([, row]) => row));
    });
  });
}
