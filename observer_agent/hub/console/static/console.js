// The console works without this. With it: a choice of theme, tables that stay fresh, a filter that shows as one types.
// What the hub sends is replaced as a whole, and only where it differs; focus and what is open stay.
"use strict";

(() => {
  const EVERY = 10000;
  const PATIENCE = 8000;
  const TYPING = 250;
  const $ = (id) => document.getElementById(id);

  // -- theme: the system's, or what was chosen; set before anything is drawn

  const chosen = () => {
    try {
      return localStorage.getItem("theme") || "";
    } catch {
      return ""; // storage is off: the system's theme
    }
  };

  const dress = (theme) => {
    document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "";
  };

  const choose = (theme) => {
    dress(theme);
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // it lasts as long as the page
    }
  };

  dress(chosen());

  // -- the live part

  let shown = "";
  let asking = 0; // the number of the question whose answer is wanted
  let failing = null; // since when nobody answers
  let timer = 0;

  const address = (where) => (where.href ? where.getAttribute("href") : where.id);

  const put = (html) => {
    const live = $("live");
    const focused = live.contains(document.activeElement) ? document.activeElement : null;
    const alike = focused ? [...live.querySelectorAll(focused.tagName)].filter((each) => address(each) === address(focused)) : [];
    const place = alike.indexOf(focused);
    const open = [...live.querySelectorAll("details[open]")].map((each) => each.id);
    const fresh = new DOMParser().parseFromString(html, "text/html").body;
    live.replaceChildren(...fresh.childNodes);
    for (const id of open) if ($(id)) $(id).open = true;
    if (!focused) return;
    const again = [...live.querySelectorAll(focused.tagName)].filter((each) => address(each) === address(focused));
    const target = again[Math.min(place, again.length - 1)];
    if (target) target.focus({preventScroll: true});
  };

  // Nothing moves under somebody who marks a text or is about to confirm something.
  const busy = () => {
    const selection = getSelection();
    const marks = selection && !selection.isCollapsed && $("live").contains(selection.anchorNode);
    return marks || $("live").querySelector("details[open] form");
  };

  const gone = (text) => {
    const line = $("gone");
    line.hidden = !text;
    if (line.textContent !== text) line.textContent = text;
  };

  const ask = async (now) => {
    clearTimeout(timer);
    const mine = ++asking;
    try {
      const answer = await fetch(location.href, {
        headers: {"Observer-Fragment": "1", Accept: "text/html"}, signal: AbortSignal.timeout(PATIENCE),
      });
      if (mine !== asking) return;
      if (answer.redirected || answer.status === 401 || answer.status === 403) return location.reload();
      if (!answer.ok && answer.status !== 404) throw new Error(answer.status);
      const html = await answer.text();
      if (mine !== asking) return;
      failing = null;
      gone("");
      if (html !== shown && (now || !busy())) {
        put(html);
        shown = html;
      }
      performance.clearMarks("fresh");
      performance.mark("fresh");
    } catch {
      if (mine !== asking) return;
      failing = failing || new Date();
      gone(`The hub does not answer since ${failing.toISOString().slice(11, 19)} UTC; what is shown is from before.`);
    }
    later();
  };

  const later = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, EVERY);
  };

  // -- the filter: the address says what is shown, so that it can be kept and sent

  const filter = (form) => {
    let typing = 0;
    const apply = () => {
      const wanted = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      history.replaceState(null, "", wanted.size ? `${location.pathname}?${wanted}` : location.pathname);
      ask(true);
    };
    form.addEventListener("input", (event) => {
      clearTimeout(typing);
      typing = setTimeout(apply, event.target.type === "search" ? TYPING : 0);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(typing);
      apply();
    });
    form.querySelector("button").hidden = true;
  };

  document.addEventListener("DOMContentLoaded", () => {
    const themes = $("themes");
    if (themes) {
      themes.hidden = false;
      $("theme").value = document.documentElement.dataset.theme;
      $("theme").addEventListener("change", (event) => choose(event.target.value));
    }
    if (!$("live")) return;
    if ($("filter")) filter($("filter"));
    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask(false)));
    later();
  });
})();
