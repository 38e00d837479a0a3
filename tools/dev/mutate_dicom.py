"""Damage DICOM files at random, read them, and count wrong outcomes.

    python tools/dev/mutate_dicom.py [--n 300] [--seed SEED]

Files in the style of three vendors and in six transfer syntaxes are cut, bytes are flipped, lengths
are made hostile, tags are removed or get other values. The outcome must be a message of one
sentence or a picture: that of the undamaged file, the one that the damaged header describes (as
computed by pydicom's own functions), or one with a note about what was assumed. Anything else is a
defect: an error that is no such message, more than 20 seconds of processor time, a wrong picture
without a note. The seed is printed."""
import argparse
import io
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut

sys.path.insert(0, str(Path(__file__).resolve().parents[2]/'tests'))
import test_dicom
from cesm_nb.imaging import dicom

SECONDS = 20
VALUES = dict( # tag -> other values, some that fit and some that cannot
    BitsStored=[8, 10, 14, 16, 0, 99], HighBit=[7, 13, 15, 0], BitsAllocated=[8, 16, 32, 1, 0],
    PixelRepresentation=[1, 7], SamplesPerPixel=[3, 0],
    Rows=[1, 31, 60, 65, 65535, 0], Columns=[1, 47, 49, 65535, 0],
    PhotometricInterpretation=['MONOCHROME1', 'RGB', 'X'],
    WindowCenter=[0, 1000, 1e30, 'x'], WindowWidth=[0, -5, 1, 100, 1e-30],
    RescaleSlope=[0, -1, 2, 1e30], RescaleIntercept=[-1000, 1e30],
    VOILUTFunction=['SIGMOID', 'LINEAR_EXACT', 'CUBIC'],
    ImageLaterality=['R', 'B', ''], Laterality=['R', 'L'], ViewPosition=['MLO', 'ML', ''],
    ImageType=[['ORIGINAL', 'PRIMARY', '', 'LOW_ENERGY'], ['A'], ''], PatientAge=['999Y', 'old'],
    PixelPaddingValue=[0, 4095, -1], NumberOfFrames=[0, 2, 99999], SOPClassUID=['1.2.3', ''],
    PatientOrientation=[['P', 'L'], ['A'], ''], PlanarConfiguration=[1])
SYNTAXES = ('ImplicitVRLittleEndian', 'ExplicitVRLittleEndian', 'ExplicitVRBigEndian',
            'RLELossless', 'JPEGLSLossless', 'JPEGLosslessSV1')


class Hang(BaseException): "Too much processor time."


def originals(folder):
    "Yield undamaged files, as bytes."
    import cv2
    from cesm_nb.synthetic.phantom import draw_image, plan_phantom
    breast = plan_phantom(12, seed=0).query("side == 'L'").iloc[0]
    drawn, _ = draw_image(breast, 'CC', 'CM', size_px=160)
    picture = cv2.resize(drawn, (48, 64), interpolation=cv2.INTER_AREA)
    for i, syntax in enumerate(getattr(test_dicom, name) for name in SYNTAXES):
        tags = list(test_dicom.VENDORS.values())[i % 3] | dict(RescaleSlope=1, RescaleIntercept=0)
        path = test_dicom.write(
            test_dicom.make(picture, (10, 12, 14)[i % 3], syntax, **tags), folder/'a.dcm')
        if syntax.is_compressed and syntax.keyword != 'RLELossless':
            test_dicom.recompress(path, syntax)
        yield path.read_bytes()


def mutate(data, rng):
    "A damaged copy, and how it was damaged."
    kind = rng.choice(
        ['cut', 'flip', 'flip', 'length', 'tag', 'tag', 'tag', 'absent', 'pixels', 'insert'])
    out, last = bytearray(data), len(data) - 8
    at, pixels = rng.randrange(132, last), data.find(b'\xe0\x7f\x10\x00')
    head = min(last, pixels if pixels >= 0 else 1500)
    if kind == 'cut': del out[rng.randrange(1, len(out)):]
    elif kind == 'flip':
        for _ in range(rng.randint(1, 4)): out[rng.randrange(132, head)] ^= 1 << rng.randrange(8)
    elif kind == 'length':
        lengths = b'\xff\xff\xff\xff', b'\0\0\0\0', b'\xfe\xff\0\0'
        at = rng.randrange(132, head)
        out[at:at + 4] = rng.choice(lengths)
    elif kind == 'pixels':
        for _ in range(8): out[rng.randrange(head, len(out))] ^= 1 << rng.randrange(8)
    elif kind == 'insert': out[at:at] = rng.randbytes(rng.randint(1, 40))
    else:
        ds, tag = pydicom.dcmread(io.BytesIO(data)), rng.choice([*VALUES])
        value, absent, kind = rng.choice(VALUES[tag]), kind == 'absent', f'{kind} {tag}'
        try:
            if absent: ds.pop(tag, None)
            else: setattr(ds, tag, value)
            ds.save_as(buffer := io.BytesIO())
        except Exception: return None, kind # pydicom does not write such a value
        out = buffer.getvalue()
    return bytes(out), kind


def described(data):
    "Pictures that a header describes, computed by pydicom, in eight orientations; [] without any."
    try:
        ds = dicom._parse(data)
        signed = bool(int(ds.get('PixelRepresentation') or 0))
        stored = dicom._decode_apart(data)
        unused = 8*stored.dtype.itemsize - int(ds.BitsStored)
        stored = (stored << unused) >> unused
        y = apply_voi_lut(apply_modality_lut(stored, ds), ds).astype(float)
        if 'WindowWidth' in ds or 'VOILUTSequence' in ds:
            bits = int(ds.BitsStored)
            low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
            slope = float(ds.get('RescaleSlope') or 1)
            intercept = float(ds.get('RescaleIntercept') or 0)
            low, high = sorted((low*slope + intercept, high*slope + intercept))
            y = (y - low)/max(high - low, 1e-9)
        else: y = stored/(2**int(ds.BitsStored) - 1)
        if ds.PhotometricInterpretation == 'MONOCHROME1': y = 1 - y
        image = np.rint(255*np.clip(y, 0, 1))
        value, limit = ds.get('PixelPaddingValue'), ds.get('PixelPaddingRangeLimit')
        if value is not None:
            ends = sorted((int(value), int(value if limit is None else limit)))
            image[(stored >= ends[0]) & (stored <= ends[1])] = 0
        return [o[::v, ::h] for o in (image, image.T) for v in (1, -1) for h in (1, -1)]
    except Exception: return []


def name_outcome(data, whole, name='a.dcm'):
    "Read a damaged file and return the verdict, which begins with DEFECT if the outcome is wrong."
    def stop(*_): raise Hang
    old = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try: view = dicom.read_view(dicom.Upload(name, data), crop=False)
    except Hang: return f'DEFECT: more than {SECONDS} s'
    except ValueError as e:
        message = str(e)
        is_sentence = name in message and '\n' not in message and len(message) < 400
        return 'refused' if is_sentence else f'DEFECT: {e!r}'
    except BaseException as e: return f'DEFECT: {type(e).__name__}: {e}'
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    image, facts = view.image.astype(int), lambda v: (v.side, v.view, v.modality)
    same = lambda other: other.shape == image.shape and np.abs(image - other).max() <= 1
    if same(whole.image) and facts(view) == facts(whole): return 'the same picture'
    if same(whole.image): return 'the same picture, other facts as in its header'
    if any(map(same, described(data))): return 'another picture, as in its header'
    if view.notes: return 'another picture, with a note'
    return 'DEFECT: another picture without a note'


def run(n, seed, report=print):
    "Damage and read n files; count the verdicts."
    rng, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        files = list(originals(Path(folder)))
        wholes = [dicom.read_view(dicom.Upload('a.dcm', f), crop=False) for f in files]
        while counts.total() < n:
            i = rng.randrange(len(files))
            data, kind = mutate(files[i], rng)
            if data is None or data == files[i]: continue
            verdict = name_outcome(data, wholes[i])
            defect = verdict.startswith('DEFECT')
            counts['DEFECT' if defect else verdict] += 1
            if defect: report(f'file {i}, {kind}: {verdict[:300]}')
    return counts


def main():
    "Print the counts of all verdicts."
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--n', type=int, default=300)
    ap.add_argument('--seed', type=int, default=random.SystemRandom().randrange(10**6))
    o = ap.parse_args()
    counts = run(o.n, o.seed)
    found = ', '.join(f'{k} {v}' for k, v in counts.most_common())
    print(f'seed {o.seed}, {o.n} damaged files: {found}')
    sys.exit(any(k.startswith('DEFECT') for k in counts))


if __name__ == '__main__': main()
