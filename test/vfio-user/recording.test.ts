/** Machines that serve clients, recorded and run again without them. */
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { WallClock } from '../../sim/wall-clock.js';
import { formatDifference, MachineReplay, Recording } from '../../vfio/user/recording/index.js';
import { chain, changed, itemsOf, job, machine, OP, RAM_BYTES, RecordedWorld, replay, started, type Client } from './recorded-world.js';
import { CMD, dmaMap, dmaUnmap, EVENTFD_TRIGGER, EVENTFD_UNMASK, infoRequest, message, regionAccess, setIrqs } from './wire.js';

describe('a replay', () => {
  it('does what the recorded machine did: time, events, memory, interrupts', () => {
    const { world, client } = started({ fields: { seed: 7 } });
    const events = [world.fd('eventfd'), world.fd('eventfd')];
    client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [events[0]!]);
    client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_UNMASK), [events[1]!]);
    world.run();
    chain(world);
    client.doorbell(0x1000);
    world.run(3);
    client.command(CMD.REGION_READ, regionAccess(0, 0, 8));
    world.wait(50);
    world.enter(() => events[1]!.listener!());
    world.run();
    client.command(CMD.RESET);
    client.command(CMD.GET_INFO, infoRequest(16));
    world.run();
    client.stop();
    world.perform('close');
    world.run();
    const file = world.finish({ frames: 3 });
    const again = replay(file);
    expect(again.differences.map(formatDifference)).toEqual([]);
    expect(again.ran).toEqual(world.machine.ran());
    expect(world.machine.ran()[0]!.length).toBeGreaterThan(12);
    expect(events[0]!.signals).toBe(3);
    expect([again.events, again.inputs, again.timeNs, again.bytesRead, again.truncated, again.errors]).toEqual([world.virtual.events, world.recorder.inputs, world.virtual.now, world.recorder.bytesRead, undefined, []]);
    expect([again.recording.fields, again.recording.end?.fields, again.recording.devices]).toEqual([{ seed: 7 }, { frames: 3 }, ['walker']]);
    expect(again.items).toBe(again.recording.items - 1);
  });

  it('puts an input before, between and behind events of one instant', () => {
    for (let cut = 0; cut < 6; cut++) {
      const { world, client } = started();
      world.run();
      for (let i = 0; i < 4; i++) {
        world.put(0x1000 * (i + 1), job(OP.words, { from: 0x100, to: 0x100, value: 1 << i }));
        client.doorbell(0x1000 * (i + 1));
      }
      world.run(cut);
      world.put(0x100, Uint8Array.of(cut, 0x55));
      client.doorbell(0x1000);
      world.run();
      const again = replay(world.finish());
      expect([again.differences, again.ran]).toEqual([[], world.machine.ran()]);
    }
  });

  it('has what clients refuse, leave half done and send wrong, and those that come after', () => {
    const { world, client } = started();
    client.command(CMD.DMA_MAP, dmaMap(0x10_0000, 0x1000), [world.fd('pipe')]);
    client.command(CMD.DMA_MAP, dmaMap(0x20_0000, 0x1000));
    client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [world.fd()]);
    client.command(77);
    world.run();
    chain(world);
    client.doorbell(0x1000);
    world.run(4);
    client.command(CMD.DMA_UNMAP, dmaUnmap(0, RAM_BYTES));
    world.run();
    client.push(message(5, CMD.GET_INFO, infoRequest(16)).subarray(0, 20), [world.fd()]);
    client.leave();
    world.run();
    const next = world.client().negotiate({ capabilities: { twin_socket: { supported: true } } });
    next.push(message(9, CMD.GET_INFO, new Uint8Array(0), 0, 0, 3));
    expect(next.closed).toBe(true);
    world.run();
    const again = replay(world.finish());
    expect([again.differences, again.ran, world.table.open]).toEqual([[], world.machine.ran(), 0]);
  });

  it('serves several devices on one clock whose memory is that of one connection', () => {
    const names = ['carrier', 'nvme', 'dsa'];
    const { world, client } = started({ names });
    const others = ['nvme', 'dsa'].map((name) => world.client(name).negotiate());
    for (const other of others) other.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd(new RecordedWorld().ram)]);
    world.run();
    chain(world);
    for (const [i, one] of [client, ...others].entries()) {
      one.doorbell(0x1000 + 64 * i);
      world.run(2);
    }
    world.run();
    const again = replay(world.finish(), names);
    expect([again.differences, again.ran]).toEqual([[], world.machine.ran()]);
    expect(again.ran.map((ran) => ran.some((line) => line.includes('exchanged')))).toEqual([true, true, true]);
  });

  it('has what comes in and goes out as messages', () => {
    const { world, client } = started();
    world.put(0x1000, job(OP.byMessage, { from: 0x2000, to: 0x3000, length: 200, next: 0x1020 }));
    world.put(0x1020, job(OP.byMessage, { from: 0x3000, to: 0x2000, length: 2 }));
    world.put(0x2000, new Uint8Array(200).fill(9));
    client.doorbell(0x1000);
    world.run();
    for (let i = 0; i < 4; i++) {
      client.answer(world.ram);
      world.run();
    }
    expect(world.machine.ran()[0]!.filter((line) => line.endsWith('written'))).toHaveLength(2);
    const again = replay(world.finish());
    expect([again.differences, again.ran]).toEqual([[], world.machine.ran()]);
  });

  it('stops where it is told to, between two inputs', () => {
    const { world, client } = started();
    chain(world);
    client.doorbell(0x1000);
    world.run();
    const recording = new Recording(world.finish());
    const { clock, scheduler, devices, ran } = machine(new VirtualClock(), ['walker']);
    const steps = new MachineReplay(recording, { clock: clock as VirtualClock, scheduler, devices });
    while (steps.step() && steps.inputs < 4);
    expect(ran()[0]!.length).toBeLessThan(3);
    expect(steps.report()).toMatchObject({ inputs: 4, differences: [] });
    while (steps.step());
    expect([ran(), steps.step()]).toEqual([world.machine.ran(), false]);
  });

  it('leaves out what happens outside of the machine, and inputs have to come in properly', () => {
    const clock = Object.assign(new VirtualClock(), { eventsRun: 0, inside: true, enter: (action: () => void) => action() });
    const world = new RecordedWorld({ clock });
    const client = world.client().negotiate();
    client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
    clock.inside = false;
    const { memory } = world.machine.walkers[0]!.memory!;
    expect([memory.load64(0), memory.load(8, 4), memory.read(0, new Uint8Array(8), 0, 8)]).toEqual([true, 0, true]);
    expect(() => client.doorbell(0)).toThrow(/comes through `enter`/);
    expect(itemsOf(world.finish()).filter(({ kind }) => /load|read/.test(kind))).toEqual([]);
  });
});

describe('a difference', () => {
  it('is found at the access behind the byte that was read otherwise', () => {
    const { world, client } = started();
    world.run();
    world.put(0x1000, job(OP.copy, { from: 0x2000, to: 0x3000, length: 100 }));
    client.doorbell(0x1000);
    world.run();
    const file = world.finish();
    const { recording } = replay(file);
    // the machine that replays finds another byte: the recording is edited in memory
    const next = recording.read.bind(recording);
    recording.read = () => {
      const reader = next(), read = reader.next.bind(reader);
      reader.next = () => {
        const item = read();
        return item?.kind === 'read' ? { ...item, bytes: item.bytes!.map((byte, i) => (i === 50 ? byte ^ 1 : byte)) } : item;
      };
      return reader;
    };
    const { clock, scheduler, devices } = machine(new VirtualClock(), ['walker']);
    const steps = new MachineReplay(recording, { clock: clock as VirtualClock, scheduler, devices });
    while (steps.step());
    const { differences: [difference], ...report } = steps.report();
    const items = itemsOf(file), at = items.findIndex(({ kind }) => kind === 'write');
    expect(difference).toMatchObject({ device: 'walker', connection: 1, item: at + 1, input: world.recorder.inputs });
    expect(difference!.expected).toMatch(/^writes 100 bytes with CRC 0x[0-9a-f]+ at 0x3000 of window 0$/);
    expect(difference!.actual).toMatch(/^writes 100 bytes with CRC 0x[0-9a-f]+ at 0x3000 of window 0$/);
    expect(difference!.actual).not.toBe(difference!.expected);
    expect(formatDifference(difference!)).toContain(`walker, connection 1: item ${at + 1}, after input ${world.recorder.inputs} (20 bytes arrive)`);
    expect(report.items).toBe(at);
  });

  it('is another message, with what it was to be', () => {
    const { world, client } = started();
    client.command(CMD.REGION_READ, regionAccess(0, 0, 8));
    world.run();
    const file = world.finish();
    const recording = new Recording(file);
    const { scheduler, devices, clock, walkers } = machine(new VirtualClock(), ['walker']);
    walkers[0]!.read = (_offset, target) => target.fill(0xee).length;
    const steps = new MachineReplay(recording, { clock: clock as VirtualClock, scheduler, devices });
    while (steps.step());
    const [difference] = steps.report().differences;
    expect(difference!.expected).toContain('sends REGION_READ reply 3 of 40 bytes');
    expect(difference!.actual).toContain('eeeeeeeeeeeeeeee');
  });

  it('is an event that is missing, one too many, and one that comes too early', () => {
    const { world, client } = started();
    world.run();
    client.doorbell(0x1000);
    world.run();
    world.wait(1000);
    client.command(CMD.GET_INFO, infoRequest(16));
    world.run();
    const recording = new Recording(world.finish());
    const differ = (change: (clock: VirtualClock, walk: () => void) => void): unknown => {
      const { scheduler, devices, clock, walkers } = machine(new VirtualClock(), ['walker']);
      change(clock as VirtualClock, () => void (walkers[0]!.write = (_offset, source) => source.length));
      const steps = new MachineReplay(recording, { clock: clock as VirtualClock, scheduler, devices });
      while (steps.step());
      return steps.report().differences[0]?.actual;
    };
    expect(differ((_clock, idle) => idle())).toMatch(/^no event is due after 2 of 3 events$/);
    expect(differ((clock) => clock.post(5, () => {}))).toMatch(/^an event is due at 10 ns, before the input at 1010 ns$/);
    expect(differ((clock) => clock.post(900, () => {}))).toMatch(/^an event is due at 900 ns, before/);
    expect(differ(() => {})).toBeUndefined();
  });

  it.each(['vfio-user.unrecorded-read', 'vfio-user.unrecorded-signal'])('shows %s', (defect) => {
    const without = changed(), withDefect = changed(defect);
    expect(replay(without.file).differences).toEqual([]);
    expect(replay(withDefect.file).differences).toHaveLength(1);
    expect(withDefect.world.machine.ran()).toEqual(without.world.machine.ran());
  });

  it('tells which devices a machine lacks', () => {
    expect(() => replay(started({ names: ['walker', 'other'] }).world.finish())).toThrow('the recording has other, the machine walker');
  });
});

describe('in real time', () => {
  it('batches are cut where they may, and the replay is the same', async () => {
    const wall = new WallClock(undefined, { held: true });
    onTestFinished(() => wall.stop());
    const world = new RecordedWorld({ clock: wall });
    world.perform('open');
    const client = world.client().negotiate();
    client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
    chain(world);
    wall.start();
    for (let i = 0; i < 30; i++) {
      // what the client does to its memory meanwhile is the machine's to find
      world.put(0x2000 + 8 * (i % 5), Uint8Array.of(i, i + 1));
      client.doorbell(0x1000 + 32 * (i % 4));
      client.command(CMD.REGION_READ, regionAccess(0, 0, 8));
      await new Promise((resolve) => void (i % 3 === 0 ? setTimeout(resolve, 1) : setImmediate(resolve)));
    }
    await new Promise<void>((resolve) => {
      const settled = (): void => void (wall.idle ? resolve() : setImmediate(settled));
      settled();
    });
    client.stop();
    const again = replay(world.finish());
    expect(again.differences.map(formatDifference)).toEqual([]);
    expect(again.ran).toEqual(world.machine.ran());
    expect([again.events, again.inputs]).toEqual([wall.eventsRun, world.recorder.inputs]);
  });

  it('a machine that lags behind is replayed the same', async () => {
    let ms = 0;
    const wall = new WallClock(undefined, { realMs: () => ms });
    onTestFinished(() => wall.stop());
    const world = new RecordedWorld({ clock: wall });
    const client = world.client().negotiate();
    client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
    chain(world);
    for (let i = 0; i < 40; i++) {
      client.doorbell(0x1000);
      client.command(CMD.REGION_READ, regionAccess(0, 0, 8));
      // every look at the time takes long: batches end after a few events
      ms += i % 4 === 0 ? 50 : 0.001;
      await new Promise((resolve) => void setImmediate(resolve));
    }
    const again = replay(world.finish());
    expect(again.differences.map(formatDifference)).toEqual([]);
    expect(again.ran).toEqual(world.machine.ran());
  });
});

describe('any mixture', () => {
  const names = ['a', 'b'];
  const step = fc.oneof(
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('run' as const), events: fc.integer({ min: 1, max: 5 }) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('wait' as const), ns: fc.nat(3000) }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('doorbell' as const), who: fc.nat(1), at: fc.nat(15) }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('poke' as const), at: fc.nat(2047), value: fc.integer() }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('signal' as const), who: fc.nat(1) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('answer' as const), who: fc.nat(1) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('map' as const), who: fc.nat(1), page: fc.nat(15), on: fc.boolean() }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('reset' as const), who: fc.nat(1) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('flush' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('renew' as const), who: fc.nat(1), stop: fc.boolean() }) },
  );

  it('of messages, events, memory and clients that come and go is replayed exactly, whole or cut off', () => {
    fc.assert(fc.property(fc.array(step, { maxLength: 60 }), fc.array(fc.tuple(fc.nat(8), fc.nat(15), fc.integer()), { minLength: 16, maxLength: 16 }), fc.double({ min: 0, max: 1, noNaN: true }), (steps, jobs, cut) => {
      const world = new RecordedWorld({ names });
      const unmask = names.map(() => world.fd('eventfd'));
      const connect = (who: number): Client => {
        const client = world.client(names[who]!).negotiate();
        client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
        client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [world.fd('eventfd')]);
        client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_UNMASK), [unmask[who] = world.fd('eventfd')]);
        return client;
      };
      const clients = [connect(0), connect(1)];
      jobs.forEach(([op, next, value], i) => world.put(0x100 * i, job(op, { from: 0x100 * next, to: 0x100 * i + (value & 0xf8), value, length: value & 0xff, delay: value & 0xfff, next: 0x100 * next })));
      for (const one of steps) {
        switch (one.kind) {
          case 'run': world.run(one.events); break;
          case 'wait': world.wait(one.ns); break;
          case 'doorbell': clients[one.who]!.doorbell(one.at * 0x100); break;
          case 'poke': world.put(one.at * 4, Uint8Array.of(one.value, one.value >> 8, one.value >> 16, one.value >> 24)); break;
          case 'signal': {
            const { listener } = unmask[one.who]!;
            if (listener !== undefined) world.enter(listener);
            break;
          }
          case 'answer': clients[one.who]!.answer(world.ram); break;
          case 'map': clients[one.who]!.command(one.on ? CMD.DMA_MAP : CMD.DMA_UNMAP, one.on ? dmaMap(one.page * 4096, 4096) : dmaUnmap(0, RAM_BYTES)); break;
          case 'reset': clients[one.who]!.command(CMD.RESET); break;
          case 'flush': world.recorder.flush(); break;
          case 'renew':
            if (one.stop) clients[one.who]!.stop();
            else clients[one.who]!.leave();
            // the next one is let in when everything of this one has been given back
            while (!clients[one.who]!.session.ended) world.run(1);
            clients[one.who] = connect(one.who);
        }
      }
      world.run(200);
      const file = world.finish();
      const again = replay(file, names);
      expect(again.differences.map(formatDifference)).toEqual([]);
      expect(again.ran).toEqual(world.machine.ran());
      const first = file.indexOf(10) + 1;
      const part = replay(file.slice(0, first + Math.floor((file.length - first) * cut)), names);
      expect(part.differences).toEqual([]);
      part.ran.forEach((ran, i) => expect(again.ran[i]!.slice(0, ran.length)).toEqual(ran));
    }), { numRuns: 150 });
  });
});
