// Coordinates of an image and of its padded square, as in sphinx_jax/core/boxes.py.

function padding({ width, height }) {
  const side = Math.max(width, height);
  return { side, left: Math.floor((side - width) / 2), top: Math.floor((side - height) / 2) };
}

// From [0, 1] on the padded square to pixels of the image; [x, y] or [x1, y1, x2, y2].
export function toPixels(numbers, size) {
  const { side, left, top } = padding(size);
  return numbers.map((number, i) => number * side - (i % 2 ? top : left));
}

// From pixels of the image to [0, 1] on its padded square.
export function toSquare(numbers, size) {
  const { side, left, top } = padding(size);
  return numbers.map((number, i) => (number + (i % 2 ? top : left)) / side);
}

// A box as models read it: [0.25, 0.31, 0.50, 0.62].
export function formatBox(box) {
  return `[${box.map((number) => Math.min(Math.max(number, 0), 0.99).toFixed(2)).join(', ')}]`;
}
