// A row of the table speaks for its finding; rows are sorted here, and stay so when the table is drawn anew.
const order = {key: 'probability', up: false};
const value = (row) => order.key === 'title' ? row.dataset.title : Number(row.dataset[order.key]);
const sort = () => {
  const body = element.querySelector('table.findings tbody');
  if (!body) return;
  const rows = [...body.rows], sign = order.up ? 1 : -1;
  const wanted = [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    return sign * (x < y ? -1 : x > y ? 1 : 0) || Number(b.dataset.probability) - Number(a.dataset.probability);
  });
  if (wanted.some((row, place) => row !== rows[place])) body.append(...wanted);
  for (const button of element.querySelectorAll('button[data-sort]')) {
    const says = button.dataset.sort !== order.key ? 'none' : order.up ? 'ascending' : 'descending';
    if (button.parentElement.getAttribute('aria-sort') !== says) button.parentElement.setAttribute('aria-sort', says);
  }
};
const drawn = {childList: true, subtree: true, attributeFilter: ['data-probability', 'data-name']};
new MutationObserver(sort).observe(element, drawn);
element.addEventListener('click', (event) => {
  const head = event.target.closest('button[data-sort]');
  if (head) {
    const key = head.dataset.sort;
    order.up = order.key === key ? !order.up : key === 'title' || key === 'call';
    order.key = key;
    sort();
  }
  const row = event.target.closest('button[data-finding]');
  if (row) trigger('select', {finding: row.dataset.finding});
  const said = event.target.closest('button[data-opinion]');
  if (said) trigger('like', {finding: said.dataset.on, opinion: said.dataset.opinion});
});
