/** SET_IRQS with its refusals. */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import { CMD, EVENTFD_TRIGGER, NONE_TRIGGER, setIrqs } from './wire.js';

const EINVAL = 22, ENOTTY = 25;

function connected(): MemoryWorld {
  return new MemoryWorld().negotiate();
}

describe('SET_IRQS', () => {
  it('signals the client through its eventfd, and takes one away where none comes', () => {
    const world = connected();
    const fds = [world.fd('eventfd'), world.fd('eventfd')];
    expect(world.ok(CMD.SET_IRQS, setIrqs(2, 1, 2, EVENTFD_TRIGGER), fds)).toEqual(new Uint8Array(0));
    world.device.triggers.get('2.2.trigger')!.signal(3);
    expect([fds[0]!.signals, fds[1]!.signals, world.session.wiredInterrupts]).toEqual([0, 3, 2]);
    world.ok(CMD.SET_IRQS, setIrqs(2, 2, 1, EVENTFD_TRIGGER));
    expect([world.device.triggers.has('2.2.trigger'), world.table.open]).toEqual([false, 1]);
  });

  it('replaces an eventfd, and tears a whole index down', () => {
    const world = connected();
    const first = world.fd('eventfd'), second = world.fd('eventfd');
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [first]);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [second]);
    expect(world.table.open).toBe(1);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, NONE_TRIGGER));
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x22, new Uint8Array([1])));
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x22, new Uint8Array([0])));
    expect([first.signals, second.signals]).toEqual([0, 2]);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 0, NONE_TRIGGER));
    expect([world.table.open, world.device.triggers.size, world.session.wiredInterrupts]).toEqual([0, 0, 0]);
  });

  it('an eventfd for unmasking passes the client\'s signals to the device', () => {
    const world = connected();
    const fd = world.fd('eventfd');
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x14), [fd]);
    let heard = 0;
    world.device.triggers.get('0.0.unmask')!.listen(() => heard++);
    fd.listener!();
    expect(heard).toBe(1);
  });

  it.each([
    ['short payload', new Uint8Array(19), EINVAL],
    ['argsz below the record', setIrqs(0, 0, 1, NONE_TRIGGER, undefined, 19), EINVAL],
    ['argsz beyond the message', setIrqs(0, 0, 1, NONE_TRIGGER, undefined, 24), EINVAL],
    ['unknown flags', setIrqs(0, 0, 1, 0x61), EINVAL],
    ['no kind of data', setIrqs(0, 0, 1, 0x20), EINVAL],
    ['two kinds of data', setIrqs(0, 0, 1, 0x23), EINVAL],
    ['no action', setIrqs(0, 0, 1, 0x01), ENOTTY],
    ['two actions', setIrqs(0, 0, 1, 0x31), ENOTTY],
    ['index 5', setIrqs(5, 0, 1, NONE_TRIGGER), EINVAL],
    ['an index without interrupts', setIrqs(1, 0, 1, NONE_TRIGGER), EINVAL],
    ['start behind the last', setIrqs(2, 4, 1, NONE_TRIGGER), EINVAL],
    ['more than there are', setIrqs(2, 2, 3, NONE_TRIGGER), EINVAL],
    ['count 0xffffffff', setIrqs(2, 1, 0xffff_ffff, NONE_TRIGGER), EINVAL],
    ['less data than interrupts', setIrqs(2, 0, 4, 0x22, new Uint8Array(3)), EINVAL],
    ['a mask that the device does not have', setIrqs(2, 0, 1, 0x09), ENOTTY],
  ])('%s', (_what, payload, errno) => {
    const world = connected();
    expect(world.errno(CMD.SET_IRQS, payload)).toBe(errno);
    expect(world.device.triggers.size).toBe(0);
  });

  it('refuses descriptors that are no eventfds, too few, too many, or not asked for, and closes them', () => {
    const world = connected();
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 2, EVENTFD_TRIGGER), [world.fd('eventfd'), world.fd('pipe')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 2, EVENTFD_TRIGGER), [world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, EVENTFD_TRIGGER), [world.fd('eventfd'), world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, NONE_TRIGGER), [world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, 0x0c), [world.fd('eventfd')])).toBe(ENOTTY);
    expect([world.table.open, world.device.triggers.size]).toEqual([0, 0]);
  });
});
