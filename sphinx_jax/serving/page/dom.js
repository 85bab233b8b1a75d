// Makes elements. Text of users and models only ever becomes text nodes.

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function find(selector) {
  return document.querySelector(selector);
}
