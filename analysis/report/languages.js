// Every text is there in each language; the reader chooses one.

// Show a language now, and another one whenever its button is pressed; `told` hears which.
export function inLanguages(titles, told) {
  const buttons = document.querySelectorAll("[data-language]");
  const speak = (language) => {
    document.documentElement.lang = language;
    document.title = titles[language];
    for (const each of document.querySelectorAll("body div[lang]")) each.hidden = each.lang !== language;
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.language === language);
    told(language);
  };
  for (const button of buttons) button.addEventListener("click", () => speak(button.dataset.language));
  speak(document.documentElement.lang);
}
