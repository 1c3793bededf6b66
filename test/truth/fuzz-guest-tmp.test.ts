import { it } from 'vitest';
import { VfioClient } from '../../vfio/client/index.js';
import type { Steps } from '../../sim/task.js';
import { HostileMachine } from './hostile-machine.js';
it('x', () => {
    const machine = new HostileMachine(0, 'found');
    const { vfio } = machine.host.passthrough;
    const [first, second] = [machine.loot()[2]!, machine.loot()[3]!];
      const process = machine.machine.scenario.world.newProcess('user');
      const client = new VfioClient(vfio, process);
      const other = client.openGroup(second.group), one = client.openGroup(first.group), container = client.openContainer();
      const vaddr = machine.run(process.mm.mmap(0x8000));
      machine.run(one.setContainer(container));
      machine.run(container.setIommu('type1v2'));
      machine.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 0x8000 }));
      const spawn = (n: string, s: Steps<unknown>) => machine.host.scheduler.spawn(n, s, { joined: true });
      const tasks = [
        spawn('unmap', container.unmapDma(0, 0x8000)), spawn('set', other.setContainer(container)), spawn('map', container.mapDma({ iova: 0x8000, vaddr, sizeBytes: 0x8000 })),
        spawn('get', other.getDevice(second.name)),
      ];
      const exit = spawn('exit', process.exit());
      for (let i = 0; i < 400; i++) {
        machine.host.clock.run({ stop: () => true });
        if (i < 30 || i % 50 === 0) console.log(i, machine.host.clock.now, exit.state, tasks.map((t) => `${t.name} ${t.state} ${t.blockedOn?.describe() ?? ''} ${(t.error as Error)?.message ?? ''}`).join(' | '), machine.host.scheduler.live().map((t) => t.name).slice(-8).join(','));
      }
});
