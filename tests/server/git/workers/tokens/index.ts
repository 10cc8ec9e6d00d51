interface Env {
  ARTIFACTS: Artifacts;
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const url = new URL(request.url);
    const repoName = url.searchParams.get("repo") ?? "starter-repo";

    const repo = await env.ARTIFACTS.get(repoName);
    const token = await repo.createToken("read", 900);

    return Response.json({
      repo: repoName,
      scope: token.scope,
      expiresAt: token.expiresAt,
      token: token.plaintext,
    });
  },
} satisfies ExportedHandler<Env>;
