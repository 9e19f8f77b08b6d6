// The map is one stop of the Tab key: arrows go to the next point that way, Enter opens it.
const at = (point) => [Number(point.getAttribute('cx')), Number(point.getAttribute('cy'))];
let chosen = null;
const choose = (point) => {
  element.querySelectorAll('.chosen').forEach((old) => old.classList.remove('chosen'));
  chosen = point;
  point.classList.add('chosen');
  point.parentElement.append(point);
  const said = element.querySelector('.said');
  if (said) said.textContent = point.dataset.label;
};
const open = (point) => { choose(point); trigger('select', {point: Number(point.dataset.point)}); };
element.addEventListener('click', (event) => {
  const point = event.target.closest('circle[data-point]');
  if (point) open(point);
});
element.addEventListener('pointerover', (event) => {
  const point = event.target.closest('circle[data-point]'), said = element.querySelector('.said');
  if (point && said) said.textContent = point.dataset.label;
});
element.addEventListener('keydown', (event) => {
  if (!event.target.closest('.map')) return;
  const points = [...element.querySelectorAll('circle[data-point]')];
  if (!points.length) return;
  if (chosen && !chosen.isConnected) chosen = null;
  if (event.key === 'Enter' && chosen) { open(chosen); return; }
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!way) return;
  event.preventDefault();
  if (!chosen) { choose(points[0]); return; }
  const [x, y] = at(chosen);
  let best = null, least = Infinity;
  for (const point of points) {
    const [u, v] = at(point), along = (u - x) * way[0] + (v - y) * way[1];
    const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
    if (along > 1e-6 && along + 3 * aside < least) { best = point; least = along + 3 * aside; }
  }
  if (best) choose(best);
});
