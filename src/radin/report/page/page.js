"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  window.radin = { views: {}, ready: false };

  // A recipe as charts.py and soups.py write it: "u" and members as bits, or "w" and their ratios.
  function recipe(code) {
    if (code[0] === "u") {
      const bits = BigInt("0x" + code.slice(1));
      const found = data.names.filter((_, k) => (bits >> BigInt(k)) & 1n);
      return (found.length > 1 ? "equal parts of " : "") + found.join(", ");
    }
    return code.slice(1).split(",").map((part) => {
      const [k, ratio] = part.split(":");
      return ratio + " " + data.names[Number(k)];
    }).join(", ");
  }

  function shown(value) {
    return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);
  }

  function told(figure, point) {
    const lines = [];
    for (const [field, label] of Object.entries(figure.labels)) {
      const value = point[field];
      if (value === undefined || value === null || typeof value === "object") continue;
      lines.push(label ? label + ": " + shown(value) : shown(value));
    }
    if (typeof point.recipe === "string") lines.push(recipe(point.recipe));
    return lines.join("\n");
  }

  // Names are only ever set as text.
  function showing(figure) {
    return (handler, event, item, value) => {
      const point = value && item && (Array.isArray(item.datum) ? item.datum[0] : item.datum);
      const text = point ? told(figure, point) : "";
      if (!text) { tip.hidden = true; return; }
      tip.textContent = text;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4)) + "px";
      tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4)) + "px";
    };
  }

  // Axis and legend colours are the style's, so that they follow the theme without drawing again.
  const config = {
    background: null,
    font: "system-ui, Helvetica Neue, Arial, sans-serif",
    view: { stroke: null },
    axis: { titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11 },
    legend: { titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11 },
    aria: false,
  };

  async function draw(figure) {
    const place = document.getElementById("chart-" + figure.key);
    const options = { actions: false, renderer: "svg", config, tooltip: showing(figure) };
    const { view } = await vegaEmbed(place, figure.spec, options);
    window.radin.views[figure.key] = view;
    const points = figure.spec.datasets.points;
    const status = place.parentElement.querySelector(".told");
    let at = -1;
    place.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") { status.textContent = ""; at = -1; return; }
      if (step === undefined || !points.length) return;
      event.preventDefault();
      at = at < 0 ? (step > 0 ? 0 : points.length - 1) : (at + step + points.length) % points.length;
      status.textContent = (at + 1) + " of " + points.length + "\n" + told(figure, points[at]);
    });
  }

  function number(text) {
    const found = /^[(]?([+\-−]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)/.exec(text.trim());
    return found ? parseFloat(found[1].replace("−", "-").replace(/,/g, "")) : NaN;
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const text = (row) => row.cells[column].textContent;
      const numeric = column > 0 && rows.some((row) => !isNaN(number(text(row)))) &&
        rows.every((row) => text(row) === "–" || !isNaN(number(text(row))));
      const down = head.getAttribute("aria-sort") === "descending" || (head.getAttribute("aria-sort") === "none" && !numeric);
      const sign = down ? 1 : -1;
      rows.sort((a, b) => {
        if (!numeric) return sign * text(a).localeCompare(text(b), undefined, { numeric: true });
        const x = number(text(a)), y = number(text(b));
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      });
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      body.append(...rows);
    }));
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("select[data-figure]").forEach((select) => select.addEventListener("change", () => {
    const view = window.radin.views[select.dataset.figure];
    if (view) view.signal("share", Number(select.value)).runAsync();
  }));
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  (async () => {
    for (const figure of data.figures) {
      await draw(figure);
      await new Promise((go) => setTimeout(go));  // the page answers in between
    }
    window.radin.ready = true;
    window.radin.took = performance.now();
  })();
})();
