"""Waiting as a person does: until the page is still."""

from playwright.sync_api import Page

STILL = """() => {
  const app = document.querySelector("[data-testid=stApp]");
  const parts = document.querySelectorAll("[data-testid=stMainBlockContainer], [data-testid=stSidebarContent]");
  const height = [...parts].map((part) => part.scrollHeight).join();  // what is drawn late moves the rest
  const views = [...document.querySelectorAll("[data-testid=stBidiComponentIsolated]")].map((view) => view.shadowRoot);
  const empty = views.some((view) => view?.querySelector(".cells:not([aria-label]), .body:empty"));
  const loading = empty || document.querySelector("[data-stale=true], [data-testid=stSkeleton]");
  const still = app?.dataset.testScriptState === "notRunning" && !loading;
  if (!still || height !== window.heightBefore) delete window.stillSince;
  else window.stillSince ??= performance.now();
  window.heightBefore = height;
  return still && performance.now() - window.stillSince > 300;
}"""


def settled(page: Page) -> None:
    """Wait until the page has run to its end and stays as it is: some presses run it twice, and pictures come late.

    What is pressed while parts of the page are still replaced or moved can miss.
    """
    for _ in range(2):  # a view tells the page of a press a moment later
        page.evaluate(
            "fetch('/_stcore/health').then(() => delete window.stillSince)"
        )  # meanwhile it reads what was sent
        page.wait_for_function(STILL, polling=50)
