// A row of the table speaks for its finding. Within a heading rows are sorted here; how they are sorted, whether the
// findings that are called absent are unfolded and whether the legend is open stay so when the table is drawn anew.
const order = {key: 'probability', up: false};
const open = {fold: false, help: false};
const value = (row) => order.key === 'title' ? row.dataset.title : Number(row.dataset[order.key]);
const sort = (body) => {
  const rows = [...body.rows].slice(1), sign = order.up ? 1 : -1;
  const wanted = [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    return sign * (x < y ? -1 : x > y ? 1 : 0) || Number(b.dataset.probability) - Number(a.dataset.probability);
  });
  if (wanted.some((row, place) => row !== rows[place])) body.append(...wanted);
};
const set = (target, name, said) => { if (target.getAttribute(name) !== said) target.setAttribute(name, said); };
const restore = () => {
  element.querySelectorAll('table.findings tbody').forEach(sort);
  for (const button of element.querySelectorAll('button[data-sort]')) {
    const says = button.dataset.sort !== order.key ? 'none' : order.up ? 'ascending' : 'descending';
    set(button.parentElement, 'aria-sort', says);
  }
  const fold = element.querySelector('button[data-fold]'), help = element.querySelector('details.help');
  if (fold) set(fold, 'aria-expanded', String(open.fold));
  if (help && help.open !== open.help) help.open = open.help;
};
const drawn = {childList: true, subtree: true, attributeFilter: ['data-probability', 'data-name', 'aria-expanded', 'open']};
new MutationObserver(restore).observe(element, drawn);
element.addEventListener('click', (event) => {
  const head = event.target.closest('button[data-sort]');
  if (head) {
    const key = head.dataset.sort;
    order.up = order.key === key ? !order.up : key === 'title';
    order.key = key;
    restore();
  }
  if (event.target.closest('button[data-fold]')) { open.fold = !open.fold; restore(); }
  if (event.target.closest('details.help > summary')) { event.preventDefault(); open.help = !open.help; restore(); }
  const row = event.target.closest('button[data-finding]');
  if (row) trigger('select', {finding: row.dataset.finding});
  const said = event.target.closest('button[data-opinion]');
  if (said) trigger('like', {finding: said.dataset.on, opinion: said.dataset.opinion});
});
