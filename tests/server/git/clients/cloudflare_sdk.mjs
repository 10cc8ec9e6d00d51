// Calls by the cloudflare npm package: node cloudflare_sdk.mjs ORIGIN ACCOUNT API_TOKEN NAMESPACE
import Cloudflare from "cloudflare";

const [origin, account, apiToken, namespace] = process.argv.slice(2);
const client = new Cloudflare({ apiToken, baseURL: `${origin}/client/v4` });
const base = `/accounts/${account}/artifacts/namespaces/${namespace}`;

const made = await client.post(`${base}/repos`, { body: { name: "from-npm" } });
const got = await client.get(`${base}/repos/from-npm`);
let conflict = null;
try {
  await client.post(`${base}/repos`, { body: { name: "from-npm" } });
} catch (error) {
  conflict = [error.constructor.name, error.status, error.errors[0].code];
}
let missing = null;
try {
  await client.get(`${base}/repos/absent`);
} catch (error) {
  missing = [error.constructor.name, error.status];
}
const gone = await client.delete(`${base}/repos/from-npm`);
console.log(
  JSON.stringify({ made: made.result.id, got: got.result.id, conflict, missing, gone: gone.result.id }),
);
