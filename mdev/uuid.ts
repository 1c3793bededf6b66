/**
 * UUIDs as the kernel reads and prints them (lib/uuid.c: guid_parse, `%pUl`; drivers/vfio/mdev/mdev_sysfs.c:
 * create_store, v5.10). A UUID is its lower-case text here: nothing needs its bytes.
 */
import { Errno } from '../sim/errno.js';
import type { Random } from '../sim/random.js';

/** Characters of a UUID (UUID_STRING_LEN). */
export const UUID_LENGTH = 36;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** True for a UUID in the spelling that everything prints: lower case, nothing around it. */
export function isUuid(text: string): boolean {
  return UUID.test(text);
}

/** The UUID that `text` spells in either case and with nothing around it; undefined when it spells none. */
export function readUuid(text: string): string | undefined {
  const uuid = text.toLowerCase();
  return isUuid(uuid) ? uuid : undefined;
}

/**
 * The UUID written to `create` (C12), in lower case. Like the kernel it looks at 36 characters and lets one more
 * follow, whichever it is: meant for a newline.
 * @throws Errno EINVAL length or characters
 */
export function parseUuid(text: string): string {
  if (text.length < UUID_LENGTH || text.length > UUID_LENGTH + 1) throw new Errno('EINVAL', `${JSON.stringify(text)} has ${text.length} characters, a UUID has ${UUID_LENGTH}`);
  const uuid = readUuid(text.slice(0, UUID_LENGTH));
  if (uuid === undefined) throw new Errno('EINVAL', `${JSON.stringify(text)} is no UUID: five groups of 8, 4, 4, 4 and 12 hexadecimal digits`);
  return uuid;
}

/** A random UUID (version 4, variant 10 of RFC 9562 section 5.4) out of a seeded stream: 128 bits, four draws. */
export function randomUuid(random: Random): string {
  const words = [random.u32(), random.u32(), random.u32(), random.u32()];
  words[1] = (words[1]! & ~0xf000) | 0x4000;
  words[2] = (words[2]! & ~0xc000_0000) | 0x8000_0000;
  const digits = words.map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('');
  return `${digits.slice(0, 8)}-${digits.slice(8, 12)}-${digits.slice(12, 16)}-${digits.slice(16, 20)}-${digits.slice(20)}`;
}
