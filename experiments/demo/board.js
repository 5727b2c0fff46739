// A board of buttons. Arrow keys move between cells, Enter or Space puts the chosen piece into a cell.
const SIZE = 60;
const MIDDLE = SIZE / 2;
const OFFSETS = [[0, -1], [1, 0], [0, 1], [-1, 0]];
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function arrow([x, y], chance) {
  const length = 6 + 20 * chance;
  const [tipX, tipY] = [MIDDLE + x * length, MIDDLE + y * length];
  const head = 3 + 3 * chance;
  const corners = [
    [tipX, tipY],
    [tipX - x * head + y * head * 0.7, tipY - y * head + x * head * 0.7],
    [tipX - x * head - y * head * 0.7, tipY - y * head - x * head * 0.7],
  ];
  const group = shape("g", { class: "arrow", opacity: Math.min(1, 0.25 + chance) });
  group.append(
    shape("line", { x1: MIDDLE, y1: MIDDLE, x2: tipX - x * head, y2: tipY - y * head, "stroke-width": 1 + 3 * chance }),
    shape("polygon", { points: corners.map((corner) => corner.join(",")).join(" ") }),
  );
  return group;
}

function picture(cell) {
  const svg = shape("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, "aria-hidden": "true" });
  if (cell.overseen) svg.append(shape("rect", { class: "overseen", x: 2, y: 2, width: SIZE - 4, height: SIZE - 4 }));
  OFFSETS.forEach((offset, move) => {
    if (cell.moves[move] >= 0.01) svg.append(arrow(offset, cell.moves[move]));
  });
  if (cell.piece === "player") {
    svg.append(shape("circle", { class: "player", cx: MIDDLE, cy: MIDDLE, r: 10 }));
  } else if (cell.piece === "wall") {
    svg.append(shape("rect", { class: "wall", x: 0, y: 0, width: SIZE, height: SIZE }));
  } else if (cell.piece !== null) {
    const text = shape("text", { x: MIDDLE, y: MIDDLE + 10, class: "terminal", fill: cell.colour });
    text.textContent = cell.glyph;
    svg.append(text);
  }
  return svg;
}

export function render({ model }) {
  const frame = document.createElement("div");
  frame.className = "frame";
  const grid = document.createElement("div");
  grid.className = "grid";
  grid.setAttribute("role", "grid");
  const path = shape("svg", { class: "trail", "aria-hidden": "true" });
  frame.append(grid, path);
  let buttons = [];

  function build() {
    const rows = [];
    buttons = model.cells.map((_, index) => {
      if (index % model.columns === 0) {
        rows.push(document.createElement("div"));
        rows.at(-1).setAttribute("role", "row");
      }
      const button = document.createElement("button");
      button.setAttribute("role", "gridcell");
      button.addEventListener("click", () => {
        enter(index);
        model.send_msg({ cell: index });
      });
      button.addEventListener("keydown", (event) => {
        const move = ["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft"].indexOf(event.key);
        if (move < 0) return;
        event.preventDefault();
        const [x, y] = OFFSETS[move];
        const column = (index % model.columns) + x;
        const to = index + x + y * model.columns;
        if (column < 0 || column >= model.columns || to < 0 || to >= buttons.length) return;
        enter(to);
        buttons[to].focus();
      });
      rows.at(-1).append(button);
      return button;
    });
    grid.style.setProperty("--columns", model.columns);
    grid.replaceChildren(...rows);
    enter(0);
  }

  // The Tab key enters the board at one cell.
  function enter(cell) {
    buttons.forEach((button, index) => (button.tabIndex = index === cell ? 0 : -1));
  }

  // Buttons stay, so that a click or the focus is not lost while the board is drawn again.
  function draw() {
    if (buttons.length !== model.cells.length) build();
    grid.setAttribute("aria-label", model.title);
    model.cells.forEach((cell, index) => {
      buttons[index].setAttribute("aria-label", cell.label);
      buttons[index].title = cell.label;
      buttons[index].replaceChildren(picture(cell));
    });
    trail();
  }

  function trail() {
    const lines = Math.ceil(model.cells.length / model.columns);
    path.setAttribute("viewBox", `0 0 ${model.columns} ${lines}`);
    path.replaceChildren();
    const cells = model.episode.cells;
    if (cells.length < 2) return;
    const points = cells.map((cell) => [(cell % model.columns) + 0.5, Math.floor(cell / model.columns) + 0.5]);
    path.append(shape("polyline", { points: points.map((point) => point.join(",")).join(" ") }));
    const dot = shape("circle", { r: 0.13, cx: points.at(-1)[0], cy: points.at(-1)[1] });
    path.append(dot);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const frames = points.map(([x, y]) => ({ transform: `translate(${x - points.at(-1)[0]}px, ${y - points.at(-1)[1]}px)` }));
    dot.animate(frames, { duration: 220 * points.length });
  }

  model.on("columns", () => {
    build();
    draw();
  });
  model.on(["cells", "title"], draw);
  model.on("episode", trail);
  draw();
  return frame;
}
