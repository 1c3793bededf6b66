import { expect, it } from 'vitest';
import { HostileMachine, LOOT } from './hostile-machine.js';
import { HostileGuest } from './hostile-guest.js';
it('time', () => {
  for (let i = 0; i < 4; i++) {
    const m = new HostileMachine(i, 'x');
    const a = new HostileGuest(m, m.start('attacker'), i === 3 ? ['place'] : LOOT);
    const before = m.machine.summary().counters;
    let held = 0, other = 0;
    for (let s = 0; s < 600; s++) { if (a.guest.state !== 'running') other++; else if (!a.guest.vmm!.clock.runs) held++; a.step(); }
    const c = m.machine.summary().counters;
    console.log(held, other, Object.entries(c).map(([k, v]) => [k, v - (before[k] ?? 0)]).filter(([k, v]) => v !== 0 && /dsa|vdsa|mtty|edu|irq|vmm|kvm|vfio|sw_error|fault/.test(k as string)).map(([k,v])=>`${k}=${v}`).join(' '));
    console.log(m.host.log.lines.slice(-8).map(l=>l.text));
  }
}, 60000);
