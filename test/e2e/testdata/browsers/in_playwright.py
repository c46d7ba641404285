"""URLs in the Chromium that Debian ships, driven by Playwright: prints what each page says, or the error."""
import sys

from playwright.sync_api import Error, sync_playwright

with sync_playwright() as p:
    browser = p.chromium.launch(executable_path="/usr/bin/chromium", chromium_sandbox=False)
    for url in sys.argv[1:]:
        page = browser.new_page()
        try:
            status = page.goto(url, timeout=60000).status
            print("status", status)
            print(page.inner_text("body"), flush=True)
        except Error as e:
            print("error", " ".join(e.message.split()), flush=True)
        page.close()
    browser.close()
