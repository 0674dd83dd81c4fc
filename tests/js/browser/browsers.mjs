// Chromium and Firefox, driven the same way (WebDriver BiDi).
//
//   CHROMIUM, FIREFOX  the browsers [default: /usr/bin/chromium, /usr/bin/firefox-esr]
import puppeteer from "puppeteer-core";

const PATHS = {
  chrome: process.env.CHROMIUM ?? "/usr/bin/chromium",
  firefox: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
};
const ARGS = {
  chrome: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
  firefox: [],
};

export const BROWSERS = Object.keys(PATHS);

export const launch = (browser) =>
  puppeteer.launch({
    browser,
    executablePath: PATHS[browser],
    args: ARGS[browser],
    headless: true,
    // The proxies' certificates are their own.
    acceptInsecureCerts: true,
  });
