// node shot.mjs BOARD.json PICTURE.png PROMETHEUS END SPAN   (END in Unix seconds, SPAN in seconds)
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import puppeteer from 'puppeteer-core';

const [, , file, out, prometheus, end, span] = process.argv;
const dashboard = JSON.parse(readFileSync(file, 'utf8'));
const settings = JSON.stringify({ dashboard, prometheus, end: +end, span: +span });
writeFileSync('build/page.html', `<!doctype html><html><head><meta charset="utf-8">
<link rel="stylesheet" href="preview.css"><style>body { margin: 0; background: #111217 }</style></head>
<body><div id="root"></div>
<script>window.process = { env: {} }; window.__grafanaSceneContext = {}; window.PREVIEW = ${settings}</script>
<script src="preview.js"></script></body></html>`);

const executablePath = ['/usr/bin/chromium', '/usr/bin/google-chrome'].find(existsSync);
const args = ['--no-sandbox', '--disable-gpu', '--allow-file-access-from-files', '--disable-dev-shm-usage', '--disable-web-security'];
const browser = await puppeteer.launch({ executablePath, headless: true, args });
const page = await browser.newPage();
page.on('pageerror', (error) => console.log('pageerror', String(error).slice(0, 400)));
const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
await page.setViewport({ width: 1600, height: 60 + rows * 38 });
await page.goto(`file://${process.cwd()}/build/page.html`);
await page.waitForFunction('window.READY', { timeout: 60000 });
await page.screenshot({ path: out });
await browser.close();
