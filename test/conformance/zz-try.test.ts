import { it, expect } from 'vitest';
import { DsaMdevWorld } from './dsa-mdev-world.js';
import { MdevGuest } from './dsa-mdev-guest.js';
it.each(['1dwq-v1', '1swq-v1'])('x %s', (type) => {
  const world = new DsaMdevWorld();
  world.create(1, type);
  const guest = new MdevGuest(world, 1);
  console.log(guest.log.lines.map((l) => l.text).join('\n'));
  console.log(guest.idxd.device(guest.pci).wqs.map((wq) => wq.options));
  const { process, malloc } = guest.process('app');
  const out = world.run((function* (): any {
    const file = yield* guest.idxd.openPinned(guest.pci, process, 'wq0.0');
    const from = yield* malloc.malloc(50000), to = yield* malloc.malloc(50000);
    yield* process.mm.write(from, Uint8Array.from({ length: 50000 }, (_, i) => (i * 7) & 0xff));
    const s = yield* file.submit([{ kind: 'copy', from, to, sizeBytes: 50000, pattern: 0n }, { kind: 'compare', from, to, sizeBytes: 50000, pattern: 0n }]);
    const r = yield* s.wait();
    const bytes = new Uint8Array(8); yield* process.mm.read(to + 100, bytes);
    yield* process.exit();
    return [r, bytes];
  })());
  console.log(JSON.stringify(out), guest.frames.pinnedPages, world.reports.length);
  world.run(guest.user.process.exit());
  console.log(world.core.usage, world.frames.pinnedPages);
});
