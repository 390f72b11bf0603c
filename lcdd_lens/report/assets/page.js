"use strict";
// Values under the pointer or the keyboard's focus on every line chart.
(() => {
  const data = JSON.parse(document.getElementById("lcdd-data").textContent) || {};
  const SVG = "http://www.w3.org/2000/svg";

  const written = (value, share) => {
    if (share) return `${+(100 * value).toFixed(1)} %`;
    const size = Math.abs(value);
    return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(+value.toPrecision(3));
  };

  const nearest = (points, x) => {
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
  };

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = (data.charts || {})[svg.dataset.chart];
    if (!chart) continue;
    const [low, high, start, end] = chart.x;
    const cursor = svg.querySelector(".cursor");
    const line = cursor.querySelector(".cross");
    const readout = svg.parentElement.querySelector(".readout");
    const dots = chart.series.map((series) => {
      const dot = document.createElementNS(SVG, "circle");
      dot.setAttribute("r", "4");
      dot.setAttribute("class", `dot c-${series.css}`);
      cursor.append(dot);
      return dot;
    });
    const longest = chart.series.reduce((a, b) => (b.points.length > a.points.length ? b : a)).points;
    let at = -1;

    const show = (x) => {
      at = nearest(longest, x);
      const step = longest[at][0];
      const texts = chart.series.map((series, index) => {
        const point = series.points[nearest(series.points, step)];
        dots[index].setAttribute("cx", point[2]);
        dots[index].setAttribute("cy", point[3]);
        return `${series.label} ${written(point[1], chart.share)}`;
      });
      line.setAttribute("x1", longest[at][2]);
      line.setAttribute("x2", longest[at][2]);
      cursor.setAttribute("visibility", "visible");
      readout.textContent = `${chart.xLabel} ${step.toLocaleString("en")}: ${texts.join(", ")}`;
    };
    const hide = () => {
      at = -1;
      cursor.setAttribute("visibility", "hidden");
      readout.textContent = "";
    };

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      show(low + ((place - start) / (end - start)) * (high - low));
    });
    svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) hide(); });
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const last = longest.length - 1;
      const stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
      const moves = { ArrowRight: at + stride, ArrowLeft: at < 0 ? last : at - stride, Home: 0, End: last };
      if (event.key === "Escape") return hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(longest[Math.min(last, Math.max(0, moves[event.key]))][0]);
    });
  }
})();
