import git from "isomorphic-git";
import http from "isomorphic-git/http/web";
import { MemoryFS } from "./memory-fs";

export default {
  async fetch(_request, env) {
    const repoName = `worker-demo-${crypto.randomUUID().slice(0, 8)}`;
    const created = await env.ARTIFACTS.create(repoName);

    // Artifacts returns art_v1_<secret>?expires=<unix_seconds>.
    // For Git Basic auth, pass only the secret as the password.
    const tokenSecret = created.token.split("?expires=")[0];
    const dir = "/workspace";
    const fs = new MemoryFS();

    await git.init({ fs, dir, defaultBranch: "main" });

    await fs.promises.writeFile(
      `${dir}/README.md`,
      "# Artifacts repo created from a Worker\n",
    );
    await fs.promises.writeFile(
      `${dir}/src/index.ts`,
      'export const message = "hello from Artifacts";\n',
    );

    await git.add({ fs, dir, filepath: "README.md" });
    await git.add({ fs, dir, filepath: "src/index.ts" });

    const commit = await git.commit({
      fs,
      dir,
      message: "Create starter files",
      author: {
        name: "Artifacts example",
        email: "artifacts@example.com",
      },
    });

    const push = await git.push({
      fs,
      http,
      dir,
      url: created.remote,
      ref: "main",
      onAuth: () => ({
        username: "x",
        password: tokenSecret,
      }),
    });

    return Response.json({
      repo: created.name,
      remote: created.remote,
      commit,
      refs: push.refs,
    });
  },
};
