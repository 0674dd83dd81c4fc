// docs/outbox-snippets.md, executed: each snippet commits an order with its announcement, and neither if that fails.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { blocks, python } from "../support/index.mjs";
import { Shop } from "./shop.mjs";

const run = promisify(execFile);
const PGX = "v5.13.0";
const SNIPPETS = blocks("docs/outbox-snippets.md");
/** Where Go's own archive puts it. */
const go = [...process.env.PATH.split(":"), "/usr/local/go/bin"].map((one) => path.join(one, "go")).find(existsSync);

let shop;
let folder;
before(async () => {
  shop = await Shop.open();
  folder = mkdtempSync(path.join(tmpdir(), "tollgate-languages-"));
  // An order that is there already fails only at the commit: what the transaction has done by then is undone.
  await shop.postgres.sql(
    "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD CONSTRAINT orders_id UNIQUE (id) DEFERRABLE INITIALLY DEFERRED",
  );
});
after(async () => {
  await shop?.close();
  rmSync(folder, { recursive: true, force: true });
});

const write = (name, text) => {
  const file = path.join(folder, name);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
  return file;
};

/** What runs a file that needs nothing around it. */
const plain = (program, variable = "DATABASE_URL", url = () => shop.url) => (file) =>
  run(program(), [file], { env: { PATH: process.env.PATH, [variable]: url() } });

const SETTINGS = (port) => `DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "shop",
    "HOST": "127.0.0.1", "PORT": ${port}}}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
`;
const MODELS = `from django.db import models


class Order(models.Model):
    item = models.TextField()

    class Meta:
        db_table = "orders"
`;

function django(file) {
  write("settings.py", SETTINGS(shop.postgres.port));
  write("shop/__init__.py", "");
  write("shop/models.py", MODELS);
  const env = { PATH: process.env.PATH, PYTHONPATH: folder, PYTHONDONTWRITEBYTECODE: "1", DJANGO_SETTINGS_MODULE: "settings" };
  return run(python(), ["-c", "import django, runpy, sys; django.setup(); runpy.run_path(sys.argv[1])", file], { env });
}

const MAIN = `package main

import (
	"context"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
)

func main() {
	db, err := pgx.Connect(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if err := buy(context.Background(), db); err != nil {
		log.Fatal(err)
	}
}
`;

async function pgx() {
  write("main.go", MAIN);
  write("go.mod", `module shop\n\ngo 1.25\n\nrequire github.com/jackc/pgx/v5 ${PGX}\n`);
  const options = { cwd: folder, env: { PATH: process.env.PATH, HOME: process.env.HOME, GOFLAGS: "-mod=mod", DATABASE_URL: shop.url } };
  assert.equal((await run(path.join(path.dirname(go), "gofmt"), ["-l", folder], options)).stdout, "", "gofmt has nothing to say");
  await run(go, ["build", "-o", "buy", "."], options);
  return run(path.join(folder, "buy"), [], options);
}

const RUNS = {
  "outbox.psycopg.py": plain(python),
  "outbox.sqlalchemy.py": plain(python, "DATABASE_URL", () => shop.url.replace("postgres:", "postgresql+psycopg:")),
  "outbox.django.py": django,
  "outbox.pdo.php": plain(() => "php", "DATABASE_DSN", () => `pgsql:host=127.0.0.1;port=${shop.postgres.port};dbname=postgres;user=shop`),
  "outbox.pg.rb": plain(() => "ruby"),
  "outbox.pgx.go": pgx,
};

test("the document has all the snippets", () => {
  assert.deepEqual(SNIPPETS.map(({ name }) => name), Object.keys(RUNS));
});

for (const { name, body } of SNIPPETS) {
  const skip = name.endsWith(".go") && !go && "there is no Go on this machine";
  test(`${name}: an order and its announcement, or neither`, { skip }, async () => {
    await shop.empty();
    const file = write(name, body);
    await RUNS[name](file);
    await shop.has(1, 1);
    const [{ channel, payload, key }] = await shop.rows();
    assert.deepEqual([channel, JSON.parse(payload), key], ["user:did%3Aprivy%3Acm1", { type: "order_paid", orderId: 4711 }, "order-4711-paid"]);

    await shop.postgres.sql("DELETE FROM tollgate_outbox");
    await assert.rejects(RUNS[name](file), /orders_id/);
    await shop.has(1, 0);
  });
}
