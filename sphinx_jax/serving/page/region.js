// Dragging a box on the image.

import { toSquare } from './square.js';

const LEAST = 4; // Pixels of the screen; less is a click.

// Calls onBox with [x1, y1, x2, y2] in [0, 1] on the padded square, while a box is dragged.
//   frame: the element around the image; size: () -> {width, height} of the image, or null;
//   takesTouch: () -> whether fingers drag boxes and do not scroll.
export function watchRegion(frame, { size, takesTouch, onBox }) {
  let from = null;
  const at = (event) => {
    const edges = frame.getBoundingClientRect();
    return [
      Math.min(Math.max((event.clientX - edges.left) / edges.width, 0), 1),
      Math.min(Math.max((event.clientY - edges.top) / edges.height, 0), 1),
    ];
  };
  frame.addEventListener('pointerdown', (event) => {
    const isMain = event.button === 0 && event.isPrimary;
    if (!isMain || !size() || (event.pointerType === 'touch' && !takesTouch())) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    from = { point: at(event), x: event.clientX, y: event.clientY };
  });
  frame.addEventListener('pointermove', (event) => {
    if (!from || Math.hypot(event.clientX - from.x, event.clientY - from.y) < LEAST) return;
    const [x1, y1] = from.point;
    const [x2, y2] = at(event);
    const { width, height } = size();
    const box = [
      Math.min(x1, x2) * width,
      Math.min(y1, y2) * height,
      Math.max(x1, x2) * width,
      Math.max(y1, y2) * height,
    ];
    onBox(toSquare(box, { width, height }));
  });
  for (const type of ['pointerup', 'pointercancel']) {
    frame.addEventListener(type, () => {
      from = null;
    });
  }
}
