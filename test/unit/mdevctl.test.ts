/** mdevctl's formats, listings, messages and commands: mdevctl/mdevctl 1.3 (README.md, src/main.rs, src/mdev.rs, src/tests). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { applyAttributes, DefinitionStore, formatDefinition, formatDefinitions, InvalidDefinition, parseDefinition, parseDefinitions, type MdevDefinition } from '../../mdev/definitions.js';
import { errorText, listOutput, listText, MdevctlError, typesJson, typesText, type ListedMdev, type ListedType } from '../../mdev/mdevctl.js';
import { Mdevctl } from '../../mdev/mdevctl-commands.js';
import { MdevWorld, uuid } from '../conformance/mdev-world.js';

const A = '0000:6a:01.0', B = '0000:e7:01.0';

/** The problems of a text that is refused, `line:column: path: message`. */
function problems(read: () => unknown): string[] {
  try {
    read();
  } catch (error) {
    if (error instanceof InvalidDefinition) return error.problems.map(({ line, column, path, message }) => `${line}:${column}: ${path}: ${message}`);
    throw error;
  }
  throw new Error('not refused');
}

const EXAMPLE = `{
  "mdev_type": "sample-1",
  "start": "manual",
  "attrs": [
    {
      "assign_adapter": "5"
    },
    {
      "assign_adapter": "0x6"
    }
  ]
}`;

describe('a definition file', () => {
  it('is read and written to the byte', () => {
    const definition = parseDefinition(EXAMPLE, 'file');
    expect(definition).toEqual({ mdevType: 'sample-1', start: 'manual', attrs: [['assign_adapter', '5'], ['assign_adapter', '0x6']] });
    expect(formatDefinition(definition)).toBe(EXAMPLE);
  });

  it('may leave attributes out; they are written as an empty array', () => {
    for (const attrs of ['', ', "attrs": null', ', "attrs": [ ]']) {
      const definition = parseDefinition(`\uFEFF{"start":"auto", "mdev_type":"i915-GVTg_V5_8"${attrs} }\n`, 'file');
      expect(formatDefinition(definition)).toBe('{\n  "mdev_type": "i915-GVTg_V5_8",\n  "start": "auto",\n  "attrs": []\n}');
    }
  });

  it('keeps whatever characters a value has', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.string({ minLength: 1, unit: 'grapheme' }), fc.string({ unit: 'grapheme' })), { maxLength: 5 }), fc.string({ minLength: 1 }), (attrs, mdevType) => {
      const definition: MdevDefinition = { mdevType, start: 'auto', attrs };
      const text = formatDefinition(definition);
      expect(parseDefinition(text, 'file')).toEqual(definition);
      // an independent reader of the same text
      expect(JSON.parse(text)).toEqual({ mdev_type: mdevType, start: 'auto', attrs: attrs.map(([name, value]) => Object.fromEntries([[name, value]]) as unknown) });
    }));
  });

  it('reads JSON as JSON.parse does, and refuses what it refuses', () => {
    const words = ['{', '}', '[', ']', ',', ':', '"a"', '"\\u00e9"', '"\\x"', 'null', 'true', '-1.5e3', '01', ' ', '\n', '"start"', '"auto"', '\t'];
    fc.assert(fc.property(fc.oneof(fc.array(fc.constantFrom(...words), { maxLength: 12 }).map((parts) => parts.join('')), fc.json()), (text) => {
      let valid = true;
      try {
        JSON.parse(text);
      } catch {
        valid = false;
      }
      const found = problems(() => parseDefinition(`{"mdev_type": 1, "attrs": ${text}}`, 'file'));
      expect(found.some((problem) => problem.includes('not JSON'))).toBe(!valid);
    }), { numRuns: 300 });
  });

  it.each([
    ['', '1:1: : not JSON: the end of the file stands where a value should be'],
    ['{"mdev_type": "a",\n "start": auto}', '2:11: : not JSON: "auto" stands where the value of "start" should be'],
    ['{"mdev_type": "a"\n "start": "auto"}', '2:2: : not JSON: """ stands where , or } should be'],
    ['{"mdev_type": "a", start: "auto"}', '1:20: : not JSON: "start" stands where a key in double quotes should be'],
    ['{"mdev_type": "a", "start": "auto",}', '1:36: : not JSON: "}" stands where a key in double quotes should be'],
    ['{"mdev_type": "a\n"}', '1:15: : not JSON: the string does not end'],
    ['{"mdev_type" "a"}', '1:14: : not JSON: """ stands where : should be'],
    ['{"mdev_type": "\\q"}', '1:16: : not JSON: there is no escape \\q'],
    ['{"mdev_type": "\\u12"}', '1:16: : not JSON: \\u needs four hexadecimal digits'],
    ['{} {}', '1:4: : not JSON: "{" follows the end of the value'],
    [`${'['.repeat(65)}`, '1:65: : not JSON: nested deeper than 64'],
    ['[]', '1:1: : is an array; a definition is an object with mdev_type, start, attrs'],
    ['{"mdev_type": 5, "start": "maybe"}', '1:15: mdev_type: is 5; allowed is the id of a type, such as "idxd-1dwq-v1"', '1:27: start: is "maybe"; allowed is "auto" or "manual"'],
    ['{\n  "attr": []\n}', '2:3: attr: unknown key; allowed: mdev_type, start, attrs', '1:1: : mdev_type is missing; it is the id of a type, such as "idxd-1dwq-v1"', '1:1: : start is missing; it is "auto" or "manual"'],
    ['{"mdev_type": "", "start": null}', '1:15: mdev_type: is ""; allowed is the id of a type, such as "idxd-1dwq-v1"', '1:28: start: is null; allowed is "auto" or "manual"'],
    ['{"mdev_type": "a", "start": "auto", "start": "auto"}', '1:37: start: the key is there twice'],
    ['{"mdev_type": "a", "start": "auto", "attrs": {"a": "1"}}', '1:46: attrs: is an object; allowed is an array of objects such as {"name": "value"}'],
    ['{"mdev_type": "a", "start": "auto", "attrs": [1, {"a": 1}, {"a": "1", "b": "2"}, {}]}',
      '1:47: attrs[0]: is 1; an attribute is an object such as {"name": "value"}', '1:56: attrs[1].a: is 1; values are strings, such as "5"',
      '1:60: attrs[2]: has 2 keys; an attribute is an object with one, its name', '1:82: attrs[3]: has 0 keys; an attribute is an object with one, its name'],
  ])('says where %j is wrong, how, and what is allowed', (text, ...expected) => {
    expect(problems(() => parseDefinition(text, 'file'))).toEqual(expected);
  });
});

const LISTED = `[
  {
    "${A}": [
      {
        "${uuid(1)}": {
          "mdev_type": "sample-1",
          "start": "auto",
          "attrs": []
        }
      },
      {
        "${uuid(2)}": {
          "mdev_type": "sample-2",
          "start": "manual",
          "attrs": [
            {
              "priority": "5"
            }
          ]
        }
      }
    ],
    "matrix": [
      {
        "${uuid(1)}": {
          "mdev_type": "vfio_ap-passthrough",
          "start": "manual",
          "attrs": []
        }
      }
    ]
  }
]`;

describe('many definitions', () => {
  it('are read from a listing and written again to the byte, sorted', () => {
    const mdevs = parseDefinitions(LISTED, 'file');
    expect(mdevs.map(({ parent, uuid: name, mdevType }) => [parent, name, mdevType])).toEqual([[A, uuid(1), 'sample-1'], [A, uuid(2), 'sample-2'], ['matrix', uuid(1), 'vfio_ap-passthrough']]);
    expect(formatDefinitions(mdevs.toReversed())).toBe(LISTED);
    expect(parseDefinitions(LISTED.slice(1, -1), 'file')).toEqual(mdevs);
    expect([parseDefinitions('[]', 'file'), formatDefinitions([])]).toEqual([[], '[]']);
  });

  it('keeps the order of names that look like numbers', () => {
    const definition = parseDefinition('{"mdev_type": "a", "start": "auto"}', 'file');
    expect(formatDefinitions([{ parent: 'b', uuid: uuid(1), ...definition }, { parent: '7', uuid: uuid(1), ...definition }, { parent: '10', uuid: uuid(1), ...definition }]).match(/^ {4}"[^"]+"/gm)).toEqual(['    "10"', '    "7"', '    "b"']);
  });

  it.each([
    ['[1]', '1:2: [0]: is 1; allowed is an object of parents, each an array of devices'],
    ['{"p": {}}', '1:7: p: is an object of 0 keys; a parent has an array of objects, each with the UUID of one device'],
    ['{"0000:6a:01.0": [[]]}', '1:19: ["0000:6a:01.0"][0]: is an array; allowed is an object with one key, the UUID of a device'],
    ['{"p": [{"x": {"mdev_type": "a", "start": "auto"}}]}', '1:9: p[0].x: is no UUID'],
    [`{"p": [{"${uuid(1)}": {"mdev_type": "a", "start": "auto"}}, {"${uuid(1).toUpperCase()}": {"mdev_type": "a", "start": "auto"}}]}`, `1:88: p[1].${uuid(1).toUpperCase()}: parent p has this device twice`],
  ])('says what is wrong with %j', (text, ...expected) => {
    expect(problems(() => parseDefinitions(text, 'file'))).toEqual(expected);
  });
});

describe('types', () => {
  const types: ListedType[] = [
    { parent: B, typeId: 'idxd-1dwq-v1', availableInstances: 2, deviceApi: 'vfio-pci', name: '', description: '' },
    { parent: A, typeId: 'sample-2', availableInstances: 0, deviceApi: 'vfio-pci', name: '', description: 'two, ports' },
    { parent: A, typeId: 'sample-1', availableInstances: 24, deviceApi: 'vfio-pci', name: 'One port', description: '' },
  ];

  it('print as text, by parent and type', () => {
    expect(typesText(types)).toBe(
      `${A}\n  sample-1\n    Available instances: 24\n    Device API: vfio-pci\n    Name: One port\n  sample-2\n    Available instances: 0\n    Device API: vfio-pci\n    Description: two, ports\n`
      + `${B}\n  idxd-1dwq-v1\n    Available instances: 2\n    Device API: vfio-pci\n`);
    expect([typesText([]), typesJson([])]).toEqual(['', '[]']);
  });

  it('print as JSON', () => {
    expect(typesJson(types)).toBe(`[
  {
    "${A}": [
      {
        "sample-1": {
          "available_instances": 24,
          "device_api": "vfio-pci",
          "name": "One port"
        }
      },
      {
        "sample-2": {
          "available_instances": 0,
          "device_api": "vfio-pci",
          "description": "two, ports"
        }
      }
    ],
    "${B}": [
      {
        "idxd-1dwq-v1": {
          "available_instances": 2,
          "device_api": "vfio-pci"
        }
      }
    ]
  }
]`);
  });
});

describe('a list', () => {
  const [first, second] = parseDefinitions(LISTED, 'file').map((mdev): ListedMdev => ({ ...mdev, active: mdev.uuid === uuid(1), defined: mdev.uuid === uuid(2) })) as [ListedMdev, ListedMdev];

  it('prints a line for each, with what else it is, and attributes when asked', () => {
    expect(listText([second, first])).toBe(`${uuid(1)} ${A} sample-1 auto\n${uuid(2)} ${A} sample-2 manual (defined)\n`);
    expect(listText([second, first], { defined: true, verbose: true })).toBe(`${uuid(1)} ${A} sample-1 auto (active)\n${uuid(2)} ${A} sample-2 manual\n  Attrs:\n    @{0}: {"priority":"5"}\n`);
    expect(listText([])).toBe('');
  });

  it('prints the definition alone when one was asked for', () => {
    const json = { dumpjson: true } as const;
    expect(listOutput([second], { ...json, uuid: uuid(2) })).toBe(formatDefinition(second));
    expect(listOutput([second], json)).toBe(formatDefinitions([second]));
    expect(listOutput([first, second], { ...json, uuid: uuid(2) })).toBe(formatDefinitions([first, second]));
    expect([listOutput([], json), listOutput([], { ...json, uuid: uuid(1) }), listOutput([], {})]).toEqual(['[]', '[]', '']);
  });
});

function machine() {
  const world = new MdevWorld();
  const a = world.parent(A), b = world.parent(B, { instances: 1, hotUnplug: false });
  const written: string[] = [];
  a.attributes = [
    { name: 'state', read: () => 'idle' },
    { name: 'priority', read: () => '1', write: (value) => {
      if (value === 'bad') throw new Errno('EINVAL', 'no priority');
      written.push(value);
    } },
  ];
  const definitions = new DefinitionStore();
  const mdevctl = new Mdevctl({ core: world.mdevs, sysfs: world.sysfs, definitions, random: new Random(1) });
  /** What a command refuses. */
  const refused = (command: () => unknown): MdevctlError => {
    try {
      command();
    } catch (error) {
      if (error instanceof MdevctlError) return error;
      throw error;
    }
    throw new Error('not refused');
  };
  const says = (command: () => unknown): string => {
    const before = JSON.stringify([world.picture(), definitions.list()]);
    const { message } = refused(command);
    expect(JSON.stringify([world.picture(), definitions.list()])).toBe(before);
    return message;
  };
  return { world, a, b, definitions, mdevctl, written, refused, says };
}

describe('define, undefine and modify', () => {
  it('keep definitions, and print the UUID that nobody gave', () => {
    const { mdevctl, definitions } = machine();
    const printed = mdevctl.define({ parent: A, type: 'sample-1', auto: true });
    expect(printed).toMatch(/^[0-9a-f-]{36}\n$/);
    expect(mdevctl.define({ uuid: uuid(1), parent: B, jsonfile: { name: 'one.json', text: EXAMPLE } })).toBe('');
    expect(mdevctl.list({ defined: true })).toBe(`${printed.trim()} ${A} sample-1 auto\n${uuid(1)} ${B} sample-1 manual\n`);
    expect(mdevctl.list({ defined: true, uuid: uuid(1), dumpjson: true })).toBe(EXAMPLE);
    mdevctl.define({ uuid: uuid(1), parent: A, type: 'sample-2' });
    mdevctl.undefine(uuid(1), B);
    expect(definitions.list({ uuid: uuid(1) }).map(({ parent }) => parent)).toEqual([A]);
    mdevctl.undefine(uuid(1));
    expect(definitions.list({ uuid: uuid(1) })).toEqual([]);
  });

  it('take what is left out from the running device', () => {
    const { world, a, mdevctl } = machine();
    world.create(a, 1);
    mdevctl.define({ uuid: uuid(1) });
    expect(mdevctl.list()).toBe(`${uuid(1)} ${A} sample-1 manual (defined)\n`);
    expect(mdevctl.list({ defined: true })).toBe(`${uuid(1)} ${A} sample-1 manual (active)\n`);
    mdevctl.define({ uuid: uuid(1), parent: B });
    expect(mdevctl.list({ defined: true, parent: B })).toBe(`${uuid(1)} ${B} sample-1 manual\n`);
  });

  it('refuse in mdevctl\'s words, with nothing changed', () => {
    const { world, a, mdevctl, says } = machine();
    const jsonfile = { name: 'one.json', text: EXAMPLE };
    mdevctl.define({ uuid: uuid(1), parent: A, type: 'sample-1' });
    world.create(a, 2);
    expect(says(() => mdevctl.define({ uuid: uuid(1), parent: A, type: 'sample-1' }))).toBe(`Device ${uuid(1)} on ${A} already defined`);
    expect(says(() => mdevctl.define({ uuid: uuid(3) }))).toBe('No parent specified');
    expect(says(() => mdevctl.define({ uuid: uuid(2), type: 'sample-1' }))).toBe('No parent specified');
    expect(says(() => mdevctl.define({ parent: A }))).toBe('No type specified');
    expect(says(() => mdevctl.define({ parent: A, type: 'sample-1', jsonfile }))).toBe('Device type cannot be specified separately from "one.json"');
    expect(says(() => mdevctl.define({ uuid: uuid(3), jsonfile }))).toBe('Parent device required to define device via "one.json"');
    expect(says(() => mdevctl.define({ uuid: uuid(1), parent: A, jsonfile }))).toBe(`Cowardly refusing to overwrite existing config for ${A}/${uuid(1)}`);
    expect(says(() => mdevctl.undefine(uuid(3)))).toBe('No devices match the specified uuid');
    expect(says(() => mdevctl.modify({ uuid: uuid(3), auto: true }))).toBe(`Mediated device ${uuid(3)} is not defined`);
    expect(says(() => mdevctl.modify({ uuid: uuid(1), parent: B, auto: true }))).toBe(`Mediated device ${B}/${uuid(1)} is not defined`);
    expect(says(() => mdevctl.modify({ uuid: uuid(1), auto: true, manual: true }))).toBe("'auto' and 'manual' are mutually exclusive");
    expect(says(() => mdevctl.modify({ uuid: uuid(1), addattr: 'priority' }))).toBe('No attribute value provided');
    expect(says(() => mdevctl.modify({ uuid: uuid(1), delattr: true, index: 0 }))).toBe(`Attribute index 0 is invalid\nDevice ${uuid(1)} has no attributes`);
    expect(says(() => mdevctl.modify({ uuid: uuid(1), jsonfile }))).toBe('Parent device required to modify device via json file');
    mdevctl.define({ uuid: uuid(1), parent: B, type: 'sample-1' });
    expect(says(() => mdevctl.modify({ uuid: uuid(1), auto: true }))).toBe(`Multiple definitions found for ${uuid(1)}, specify a parent`);
    expect(problems(() => mdevctl.define({ parent: A, jsonfile: { name: 'bad.json', text: '{' } }))).toEqual(['1:2: : not JSON: the end of the file stands where a key in double quotes should be']);
  });

  it('change type, start and attributes by their index', () => {
    const { mdevctl, definitions, says } = machine();
    mdevctl.define({ uuid: uuid(1), parent: A, type: 'sample-1' });
    const modify = (options: object): unknown => {
      mdevctl.modify({ uuid: uuid(1), ...options });
      const { mdevType, start, attrs } = definitions.get(A, uuid(1))!;
      return [mdevType, start, attrs.map((attr) => attr.join('='))];
    };
    expect(modify({ addattr: 'a', value: '1', type: 'sample-2' })).toEqual(['sample-2', 'manual', ['a=1']]);
    expect(modify({ addattr: 'b', value: '2', auto: true })).toEqual(['sample-2', 'auto', ['a=1', 'b=2']]);
    expect(modify({ addattr: 'c', value: '3', index: 0 })).toEqual(['sample-2', 'auto', ['c=3', 'a=1', 'b=2']]);
    expect(modify({ addattr: 'd', value: '4', index: 3 })).toEqual(['sample-2', 'auto', ['c=3', 'a=1', 'b=2', 'd=4']]);
    expect(modify({ delattr: true, index: 1, manual: true })).toEqual(['sample-2', 'manual', ['c=3', 'b=2', 'd=4']]);
    expect(modify({ delattr: true })).toEqual(['sample-2', 'manual', ['c=3', 'b=2']]);
    expect(says(() => mdevctl.modify({ uuid: uuid(1), addattr: 'e', value: '', index: 3 }))).toBe('Attribute index 3 is invalid\n  Attrs:\n    @{0}: {"c":"3"}\n    @{1}: {"b":"2"}\n');
    expect(modify({ parent: A, jsonfile: { name: 'one.json', text: EXAMPLE } })).toEqual(['sample-1', 'manual', ['assign_adapter=5', 'assign_adapter=0x6']]);
    mdevctl.modify({ uuid: uuid(1), delattr: true });
    mdevctl.modify({ uuid: uuid(1), delattr: true });
    expect(modify({ delattr: true })).toEqual(['sample-1', 'manual', []]);
  });
});

describe('start and stop', () => {
  it('run a device from its definition, a file, or what was said', () => {
    const { world, mdevctl, written } = machine();
    mdevctl.define({ uuid: uuid(1), parent: A, type: 'sample-1' });
    for (const value of ['3', '1', '2']) mdevctl.modify({ uuid: uuid(1), addattr: 'priority', value });
    expect(world.run(mdevctl.start({ uuid: uuid(1) }))).toBe('');
    expect(written).toEqual(['3', '1', '2']);
    expect(world.run(mdevctl.start({ uuid: uuid(2), parent: B, type: 'sample-2' }))).toBe('');
    const text = formatDefinition({ mdevType: 'sample-2', start: 'auto', attrs: [['priority', '9']] });
    const printed = world.run(mdevctl.start({ parent: A, jsonfile: { name: 'one.json', text } }));
    expect(written.at(-1)).toBe('9');
    expect(mdevctl.list({ parent: A })).toBe(listText([
      { parent: A, uuid: uuid(1), mdevType: 'sample-1', start: 'manual', attrs: [], active: true, defined: true },
      { parent: A, uuid: printed.trim(), mdevType: 'sample-2', start: 'manual', attrs: [], active: true, defined: false },
    ]));
    expect(mdevctl.types({ parent: A })).toContain('Available instances: 2\n');
    expect(mdevctl.types({ parent: A })).toContain('Description: a card, with one port\n');
    world.run(mdevctl.stop(uuid(1)));
    expect(mdevctl.list({ uuid: uuid(1) })).toBe('');
    expect(mdevctl.list({ uuid: uuid(1), defined: true })).toBe(`${uuid(1)} ${A} sample-1 manual\n`);
  });

  it('remove the device again when an attribute is refused, and do not write the next', () => {
    const { world, a, mdevctl, written, refused, says } = machine();
    const start = (attrs: [string, string][]) => () => world.run(mdevctl.startDefined({ uuid: uuid(1), parent: A, mdevType: 'sample-1', start: 'auto', attrs }));
    expect(says(start([['priority', '1'], ['priorty', '2'], ['priority', '3']]))).toBe("Invalid attribute 'priorty'");
    expect(errorText(refused(start([['priority', 'bad'], ['priority', '3']])))).toBe('Error: Failed to write bad to attribute priority\n\nCaused by:\n    Invalid argument (os error 22)\n');
    expect(errorText(refused(start([['state', 'busy']])))).toBe('Error: Failed to write busy to attribute state\n\nCaused by:\n    Permission denied (os error 13)\n');
    expect([written, a.available, world.mdevs.state(uuid(1))]).toEqual([['1'], 4, 'ABSENT']);
    expect(a.calls).toEqual(['create 01', 'remove 01', 'create 01', 'remove 01', 'create 01', 'remove 01']);
  });

  it('remove it also for who applies attributes without mdevctl', () => {
    const { world, a, written } = machine();
    world.create(a, 1);
    world.run(applyAttributes(world.sysfs, uuid(1), [['priority', '1'], ['priority', '2']]));
    expect(written).toEqual(['1', '2']);
    expect(world.refusal(applyAttributes(world.sysfs, uuid(1), [['priority', 'bad']])).message).toBe(`-EINVAL: mdev ${uuid(1)} is removed again, its attribute priority did not take "bad": no priority`);
    expect(world.mdevs.state(uuid(1))).toBe('ABSENT');
  });

  it('refuse in mdevctl\'s words, with nothing changed', () => {
    const { world, a, b, mdevctl, refused, says } = machine();
    const start = (options: object) => () => world.run(mdevctl.start(options));
    world.create(a, 1);
    world.create(b, 2);
    expect(says(start({ uuid: uuid(1), parent: A, type: 'sample-1' }))).toBe('Device already exists');
    expect(says(start({ uuid: uuid(1), parent: A, type: 'sample-2' }))).toBe('Device exists with different type');
    expect(says(start({ uuid: uuid(1), parent: B, type: 'sample-1' }))).toBe('Device exists under different parent');
    expect(says(start({ parent: 'card7', type: 'sample-1' }))).toBe("Unable to find parent device 'card7'");
    expect(says(start({ parent: A.toUpperCase(), type: 'sample-1' }))).toBe(`Unable to find parent device '${A.toUpperCase()}'. Did you mean '${A}'?`);
    expect(says(start({ parent: A, type: 'sample-3' }))).toBe(`Parent ${A} does not support mdev type sample-3`);
    expect(says(start({ parent: B, type: 'sample-1' }))).toBe(`No available instances of sample-1 on ${B}`);
    expect(says(start({ uuid: uuid(3), type: 'sample-1' }))).toBe("can't provide type without parent");
    expect(says(start({ uuid: uuid(3), parent: A }))).toBe('Device is insufficiently specified');
    const jsonfile = { name: 'one.json', text: EXAMPLE };
    expect(says(start({ jsonfile, parent: A, type: 'sample-1' }))).toBe('Device type cannot be specified separately from json file');
    expect(says(start({ jsonfile }))).toBe('Parent device required to start device via json file');
    mdevctl.define({ uuid: uuid(3), parent: A, type: 'sample-1' });
    expect(says(start({ uuid: uuid(3), type: 'sample-2' }))).toBe(`Device ${uuid(3)} already exists on parent ${A} with type sample-1`);
    mdevctl.define({ uuid: uuid(3), parent: B, type: 'sample-1' });
    expect(says(start({ uuid: uuid(3) }))).toBe(`Multiple definitions found for device ${uuid(3)}. Please specify a parent.`);
    expect(says(() => world.run(mdevctl.stop(uuid(4))))).toBe('Device must have a defined mdev_type');
    expect(errorText(refused(start({ parent: A })))).toBe('Error: Device is insufficiently specified\n');
    a.refuseCreate = 'ENOMEM';
    expect(errorText(refused(start({ uuid: uuid(4), parent: A, type: 'sample-1' })))).toBe(`Error: Failed to create mdev ${uuid(4)}, type sample-1 on ${A}\n\nCaused by:\n    Cannot allocate memory (os error 12)\n`);
    world.run(world.use(uuid(2)));
    expect(errorText(refused(() => world.run(mdevctl.stop(uuid(2)))))).toBe(`Error: Error removing device ${uuid(2)}\n\nCaused by:\n    Device or resource busy (os error 16)\n`);
  });

  it('start what is to start with its parent, and warn of what does not', () => {
    const { world, mdevctl } = machine();
    for (const n of [1, 2]) mdevctl.define({ uuid: uuid(n), parent: B, type: 'sample-1', auto: true });
    mdevctl.define({ uuid: uuid(3), parent: B, type: 'sample-1' });
    expect(world.run(mdevctl.startParentMdevs(B))).toEqual([`No available instances of sample-1 on ${B}`]);
    expect(mdevctl.list()).toBe(`${uuid(1)} ${B} sample-1 auto (defined)\n`);
    expect(world.run(mdevctl.startParentMdevs(A))).toEqual([]);
  });
});
