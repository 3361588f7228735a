FROM node:26-slim

WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev && npm cache clean --force
COPY gen gen
COPY src src

# Without DATABASE_URL the embedded Postgres keeps its data here.
RUN mkdir .data && chown node:node .data
VOLUME /app/.data

USER node
ENV NODE_ENV=production HOST=0.0.0.0
EXPOSE 50051 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD ["node", "-e", "fetch('http://127.0.0.1:' + (process.env.HTTP_PORT || 8080) + '/readyz').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
CMD ["node", "--max-semi-space-size=64", "--no-memory-reducer", "src/main.ts"]
