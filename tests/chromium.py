"""How tests open pages in headless Chromium, and what they measure there."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

# Of every element with text of its own: WCAG contrast of that text to what lies behind it, and its words.
CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll('*')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
    .map(e => {
      const style = getComputedStyle(e), back = light(behind(e));
      const ink = light(parse(e instanceof SVGElement ? style.fill : style.color));
      return [(Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05), e.tagName + ': ' + e.textContent.trim().slice(0, 40)];
    });
}"""
